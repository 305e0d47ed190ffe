package sshdoor

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Login is what an SSH user name says: who logs in, and to what.
type Login struct {
	User   string // the person
	Target string // an image's name, or an environment's id or name; "" asks the person
}

// The ways in which a login name can be wrong.
var (
	ErrLoginUser   = errors.New("the part before + must be a user name: 3 to 32 of a-z 0-9 _ -, a letter first")
	ErrLoginTarget = errors.New("the part after + must be an image's or an environment's name: letters, digits and . _ : -, at most 63")
)

var (
	userPattern   = regexp.MustCompile(`^[a-z][a-z0-9_-]{2,31}$`)
	targetPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$`)
)

// ParseLogin takes an SSH user name, "alice" or "alice+busybox", apart. With ErrLoginTarget the returned User is
// valid: the person can still be told, after they proved who they are.
func ParseLogin(name string) (Login, error) {
	user, target, named := strings.Cut(name, "+")
	if !userPattern.MatchString(user) {
		return Login{}, ErrLoginUser
	}
	if !named {
		return Login{User: user}, nil
	}
	if !targetPattern.MatchString(target) {
		return Login{User: user}, fmt.Errorf("%.80q: %w", target, ErrLoginTarget)
	}
	return Login{User: user, Target: target}, nil
}
