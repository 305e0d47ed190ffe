package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/learnos/learnos/gateway/auth"
	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/stopwatch"
	"github.com/learnos/learnos/gateway/store"
)

// bind reads the request's JSON into out, strictly; with optional an empty body is fine.
func bind(c *gin.Context, out any, optional bool) error {
	data, err := io.ReadAll(c.Request.Body)
	if err != nil {
		var tooLong *http.MaxBytesError
		if errors.As(err, &tooLong) {
			return problem.New(http.StatusRequestEntityTooLarge, "body_too_large", fmt.Sprintf("The request has more than %d KiB.", maxBody>>10), "Send less.")
		}
		return problem.New(http.StatusBadRequest, "bad_body", "The request's body could not be read.", "Send it again.")
	}
	if optional && len(strings.TrimSpace(string(data))) == 0 {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err = d.Decode(out); err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		}
		err = errors.New("there is more than one JSON value")
	}
	p := problem.New(http.StatusBadRequest, "bad_json", "The request is not the JSON that belongs here: "+strings.TrimPrefix(err.Error(), "json: ")+".",
		"GET /api/v1/openapi.json describes it.")
	var kind *json.UnmarshalTypeError
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		p.Code, p.Field = "unknown_field", strings.Trim(field, `"`)
	} else if errors.As(err, &kind) {
		p.Field = kind.Field
	}
	return p
}

// caller is who asks.
type caller struct {
	store.User
	session string
}

const callerKey = "learnos.caller"

func who(c *gin.Context) caller { return c.MustGet(callerKey).(caller) }

const (
	accessCookie  = "learnos_access"
	refreshCookie = "learnos_refresh"
	refreshPath   = "/api/v1/auth"
)

func unauthenticated(code, message, hint string) *problem.Problem {
	return problem.New(http.StatusUnauthorized, code, message, hint)
}

// authenticate finds out who asks: by bearer token, else by cookie.
func (a *API) authenticate(c *gin.Context) error {
	defer stopwatch.Start(c.Request.Context(), "auth")()
	token, bearer := strings.CutPrefix(c.GetHeader("Authorization"), "Bearer ")
	if !bearer {
		cookie, err := c.Request.Cookie(accessCookie)
		if err != nil || cookie.Value == "" {
			return unauthenticated("unauthenticated", "Nobody is logged in.", "Log in, or refresh the session.")
		}
		token = cookie.Value
		if unsafe(c) {
			if err := a.sameOrigin(c, true); err != nil {
				return err
			}
		}
	} else if unsafe(c) && isUpgrade(c) {
		if err := a.sameOrigin(c, false); err != nil {
			return err
		}
	}
	access, err := a.Keys.Parse(token)
	if err != nil {
		return unauthenticated("token_invalid", "The access token is not valid, or not any more.", "Refresh the session, or log in again.")
	}
	session, user, err := a.Store.LiveSession(c.Request.Context(), access.Session, a.now())
	if errors.Is(err, store.ErrRevoked) || errors.Is(err, store.ErrNotFound) || (err == nil && session.UserID != access.User) {
		return unauthenticated("session_ended", "This login session has ended.", "Log in again.")
	}
	if err != nil {
		return fmt.Errorf("look for the login session: %w", err)
	}
	c.Set(callerKey, caller{user, session.ID})
	return nil
}

func (a *API) adminOnly(c *gin.Context) error {
	if !who(c).Admin {
		return problem.New(http.StatusForbidden, "admin_only", "Only an administrator may do this.", "Ask one, or log in as one.")
	}
	return nil
}

func (a *API) doorOnly(c *gin.Context) error {
	if !a.fromDoor(c) {
		return unauthenticated("not_the_door", "Only the installation's own SSH door may ask this.", "Share the secret named door between the two processes.")
	}
	return nil
}

func isUpgrade(c *gin.Context) bool {
	return strings.Contains(strings.ToLower(c.GetHeader("Upgrade")), "websocket")
}

// unsafe tells whether a request may change something, or reads through a websocket, which no same-origin policy of a
// browser guards.
func unsafe(c *gin.Context) bool {
	switch c.Request.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return isUpgrade(c)
	}
	return true
}

// sameOrigin refuses what another site's page sends with a user's cookies. Without needed a request that has no Origin
// passes: it comes from a program, which has no cookies of others.
func (a *API) sameOrigin(c *gin.Context, needed bool) error {
	origin := c.GetHeader("Origin")
	if origin == "" && !needed {
		return nil
	}
	if a.origins[strings.ToLower(origin)] {
		return nil
	}
	if u, err := url.Parse(origin); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && sameHost(u, c.Request.Host) {
		return nil
	}
	return problem.New(http.StatusForbidden, "wrong_origin", fmt.Sprintf("A page of %q may not ask this of %q.", clip(origin, 200), clip(c.Request.Host, 200)),
		"Use the panel's own address, or add the page's origin to web.origins.")
}

func sameHost(origin *url.URL, host string) bool {
	port := map[string]string{"http": ":80", "https": ":443"}[origin.Scheme]
	return strings.TrimSuffix(strings.ToLower(origin.Host), port) == strings.TrimSuffix(strings.ToLower(host), port)
}

// limit takes one from a budget of attempts.
func (a *API) limit(l *auth.Limiter, key string) error {
	wait, ok := l.Allow(key, a.now())
	if ok {
		return nil
	}
	return problem.New(http.StatusTooManyRequests, "too_many_attempts", "Too many attempts.", "Wait "+seconds(wait)+" seconds, then try again.").After(wait)
}

// seconds rounds up, to at least 1.
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

// numeric reads an id from the path.
func numeric(c *gin.Context, what string) (int64, error) {
	id, err := strconv.ParseInt(c.Param("id"), 10, 64)
	if err != nil || id < 1 {
		return 0, problem.NotFound(what)
	}
	return id, nil
}

// queryInt reads an optional number from the query.
func queryInt(c *gin.Context, name string, least, most, otherwise int64) (int64, error) {
	text, ok := c.GetQuery(name)
	if !ok {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most {
		return 0, problem.Field(name, "must be a number from %d to %d", least, most)
	}
	return n, nil
}
