// Package problem is how the gateway tells a client what was wrong and what to do next. It knows no HTTP beyond the
// status that goes with a problem.
package problem

import (
	"fmt"
	"net/http"
	"time"
)

// Problem is an error for a person and for a program.
type Problem struct {
	Status     int           `json:"-"`
	RetryAfter time.Duration `json:"-"` // 0: says nothing
	Code       string        `json:"code"`
	Message    string        `json:"message"` // what was wrong
	Hint       string        `json:"hint"`    // what to do next
	Field      string        `json:"field,omitempty"`
}

func (p *Problem) Error() string { return p.Code + ": " + p.Message }

// New makes a problem.
func New(status int, code, message, hint string) *Problem {
	return &Problem{Status: status, Code: code, Message: message, Hint: hint}
}

// Field is a request field with a value that can't be accepted.
func Field(name, format string, args ...any) *Problem {
	return &Problem{Status: http.StatusUnprocessableEntity, Code: "invalid_field", Field: name,
		Message: name + " " + fmt.Sprintf(format, args...), Hint: "Correct " + name + " and send the request again."}
}

// NotFound is something that is not there, or that the asker must not know of.
func NotFound(what string) *Problem {
	return New(http.StatusNotFound, "not_found", "There is no such "+what+".", "Reload the list: it may have been removed.")
}

// After says when to try again.
func (p *Problem) After(d time.Duration) *Problem {
	p.RetryAfter = d
	return p
}
