package sshdoor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// gatewayClient speaks the gateway's HTTP API.
type gatewayClient struct {
	base    *url.URL
	doorKey string
	http    *http.Client
	dialer  *websocket.Dialer
}

func newGatewayClient(base, doorKey string) (*gatewayClient, error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("gateway URL %q must look like http://host:port", base)
	}
	dial := (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	return &gatewayClient{
		base:    u,
		doorKey: doorKey,
		http: &http.Client{
			Timeout:   30 * time.Second,
			Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute},
		},
		dialer: &websocket.Dialer{NetDialContext: dial, HandshakeTimeout: 10 * time.Second, ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10},
	}, nil
}

// apiError is an answer that says no.
type apiError struct {
	Status              int
	Code, Message, Hint string
	Field               string // of the request, when that is what was wrong
	own                 bool   // the door's own words, in the person's language already
}

func (e *apiError) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " " + e.Hint
}

// endedError is a machine that is in none of the states that come before running, nor in that.
type endedError struct{ env environment }

func (e *endedError) Error() string {
	if e.env.Reason != "" {
		return e.env.Reason
	}
	return "The environment is " + e.env.State + "."
}

// statusOf returns the HTTP status of an answer that said no, and 0 for every other error.
func statusOf(err error) int {
	var a *apiError
	if errors.As(err, &a) {
		return a.Status
	}
	return 0
}

// transient reports whether asking again later may help: the gateway is away or restarting.
func transient(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && statusOf(err) != 0 {
		return false
	}
	s := statusOf(err)
	return s == 0 || s == http.StatusBadGateway || s == http.StatusServiceUnavailable || s == http.StatusGatewayTimeout
}

func readError(res *http.Response) error {
	var body struct {
		Error struct{ Code, Message, Hint, Field string } `json:"error"`
	}
	data, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	e := &apiError{Status: res.StatusCode}
	if json.Unmarshal(data, &body) == nil && body.Error.Message != "" {
		e.Code, e.Message, e.Hint, e.Field = body.Error.Code, body.Error.Message, body.Error.Hint, body.Error.Field
	} else {
		e.Code, e.Message = "http_"+strconv.Itoa(res.StatusCode), "The gateway answered "+res.Status+"."
	}
	return e
}

func (g *gatewayClient) request(ctx context.Context, method, path, token, remote string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	p, query, _ := strings.Cut(path, "?")
	u := g.base.JoinPath(p)
	u.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return err
	}
	g.headers(req.Header, token, remote)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := g.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the gateway: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return readError(res)
	}
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 16<<20)).Decode(out); err != nil {
		return fmt.Errorf("reading the gateway's answer to %s %s: %w", method, p, err)
	}
	return nil
}

func (g *gatewayClient) headers(h http.Header, token, remote string) {
	h.Set("User-Agent", "learnos-sshdoor")
	h.Set("X-Learnos-Door", g.doorKey)
	h.Set("X-Forwarded-For", remote)
	h.Set("X-Forwarded-Proto", "ssh")
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
}

// tokens is the gateway's answer to a login.
type tokens struct {
	AccessToken  string `json:"accessToken"`
	RefreshToken string `json:"refreshToken"`
	ExpiresIn    int    `json:"expiresIn"` // seconds
	User         struct {
		ID       any    `json:"id"`
		Username string `json:"username"`
	} `json:"user"`
}

// image is a row of the catalogue, as far as the door cares.
type image struct {
	Name          string `json:"name"`
	Title         string `json:"title"`
	TitleZh       string `json:"titleZh"`
	Description   string `json:"description"`
	DescriptionZh string `json:"descriptionZh"`
	Enabled       bool   `json:"enabled"`
}

// environment is one machine of the person's.
type environment struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	Image         string `json:"image"`
	Title         string `json:"title"`
	State         string `json:"state"`
	Stage         string `json:"stage"`
	Percent       int    `json:"percent"`
	Reason        string `json:"reason"`
	ReasonCode    string `json:"reasonCode"`
	Hint          string `json:"hint"`
	QueuePosition *int   `json:"queuePosition"`

	ReasonValues       map[string]string `json:"reasonValues"`
	IdleTimeoutSeconds int64             `json:"idleTimeoutSeconds"` // 0: it may be idle for ever
	Deadline           *time.Time        `json:"deadline"`           // nil: none
}

// label is how a person knows the environment.
func (e environment) label() string {
	if e.Name != "" {
		return e.Name
	}
	return e.ID
}

// ended reports whether the environment will never run again.
func (e environment) ended() bool {
	switch e.State {
	case "deleted", "failed", "overstep":
		return true
	}
	return false
}

type sessionInfo struct {
	ID        string    `json:"id"`
	TTY       bool      `json:"tty"`
	Exited    bool      `json:"exited"`
	CreatedAt time.Time `json:"createdAt"`
}

type sessionRequest struct {
	Args []string `json:"args,omitempty"`
	TTY  bool     `json:"tty"`
	Cols int      `json:"cols,omitempty"`
	Rows int      `json:"rows,omitempty"`
	Env  []string `json:"env,omitempty"`
}

// person is somebody who logged in: their tokens, renewed as they expire. Safe for concurrent use.
type person struct {
	gw     *gatewayClient
	name   string
	remote string // IP address

	mu      sync.Mutex
	access  string
	refresh string
	expires time.Time
}

func newPerson(gw *gatewayClient, t tokens, remote string) *person {
	p := &person{gw: gw, name: t.User.Username, remote: remote}
	p.keep(t)
	return p
}

func (p *person) keep(t tokens) {
	p.access, p.refresh = t.AccessToken, t.RefreshToken
	p.expires = time.Now().Add(time.Duration(t.ExpiresIn) * time.Second)
}

// token returns an access token that is good for a little while. stale names one that the gateway just refused.
func (p *person) token(ctx context.Context, stale string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.access != stale && time.Until(p.expires) > 20*time.Second {
		return p.access, nil
	}
	var t tokens
	err := p.gw.request(ctx, http.MethodPost, "/api/v1/auth/refresh", "", p.remote, map[string]string{"refreshToken": p.refresh}, &t)
	if err != nil {
		if p.access != stale && time.Now().Before(p.expires) {
			return p.access, nil
		}
		return "", err
	}
	p.keep(t)
	return p.access, nil
}

// call does one request as the person.
func (p *person) call(ctx context.Context, method, path string, in, out any) error {
	tok, err := p.token(ctx, "")
	if err != nil {
		return err
	}
	err = p.gw.request(ctx, method, path, tok, p.remote, in, out)
	if statusOf(err) != http.StatusUnauthorized {
		return err
	}
	if tok, err = p.token(ctx, tok); err != nil {
		return err
	}
	return p.gw.request(ctx, method, path, tok, p.remote, in, out)
}

// dial opens a websocket as the person.
func (p *person) dial(ctx context.Context, path, query, subprotocol string) (*websocket.Conn, error) {
	stale := ""
	for try := 0; ; try++ {
		tok, err := p.token(ctx, stale)
		if err != nil {
			return nil, err
		}
		u := p.gw.base.JoinPath(path)
		u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
		u.RawQuery = query
		h := http.Header{}
		p.gw.headers(h, tok, p.remote)
		h.Set("Sec-WebSocket-Protocol", subprotocol)
		ws, res, err := p.gw.dialer.DialContext(ctx, u.String(), h)
		if err == nil {
			return ws, nil
		}
		if res == nil {
			return nil, fmt.Errorf("asking the gateway: %w", err)
		}
		if err = readError(res); res.StatusCode != http.StatusUnauthorized || try > 0 {
			return nil, err
		}
		stale = tok
	}
}

// logout revokes the person's tokens.
func (p *person) logout(ctx context.Context) {
	_ = p.call(ctx, http.MethodPost, "/api/v1/auth/logout", nil, nil)
}

func (p *person) images(ctx context.Context) ([]image, error) {
	var all, out []image
	if err := p.call(ctx, http.MethodGet, "/api/v1/images", nil, &all); err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Enabled {
			out = append(out, i)
		}
	}
	return out, nil
}

func (p *person) environments(ctx context.Context) ([]environment, error) {
	var out []environment
	err := p.call(ctx, http.MethodGet, "/api/v1/environments", nil, &out)
	return out, err
}

func (p *person) environment(ctx context.Context, id string) (environment, error) {
	var out environment
	err := p.call(ctx, http.MethodGet, "/api/v1/environments/"+url.PathEscape(id), nil, &out)
	return out, err
}

func (p *person) create(ctx context.Context, image string) (environment, error) {
	var out environment
	err := p.call(ctx, http.MethodPost, "/api/v1/environments", map[string]string{"image": image}, &out)
	return out, err
}

func (p *person) remove(ctx context.Context, id string) error {
	err := p.call(ctx, http.MethodDelete, "/api/v1/environments/"+url.PathEscape(id), nil, nil)
	if statusOf(err) == http.StatusNotFound {
		return nil
	}
	return err
}

func (p *person) sessions(ctx context.Context, env string) ([]sessionInfo, error) {
	var out []sessionInfo
	err := p.call(ctx, http.MethodGet, "/api/v1/environments/"+url.PathEscape(env)+"/sessions", nil, &out)
	return out, err
}

func (p *person) startSession(ctx context.Context, env string, req sessionRequest) (string, error) {
	var out struct {
		ID string `json:"id"`
	}
	err := p.call(ctx, http.MethodPost, "/api/v1/environments/"+url.PathEscape(env)+"/sessions", req, &out)
	return out.ID, err
}

func (p *person) closeSession(ctx context.Context, env, session string) error {
	return p.call(ctx, http.MethodDelete, "/api/v1/environments/"+url.PathEscape(env)+"/sessions/"+url.PathEscape(session), nil, nil)
}

// event is one message of the gateway's event stream.
type event struct {
	Type        string          `json:"type"`
	Environment json.RawMessage `json:"environment"` // an object in "environment" events, an id in "stats"
}

// watch calls see for every environment of the person's, first as they are and then as they change, until ctx
// ends or the gateway says that it never will. A broken stream is opened again; connected is called after each opening.
func (p *person) watch(ctx context.Context, connected func() error, see func(environment)) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 3*time.Second) {
		err := p.watchOnce(ctx, func() error { wait = 100 * time.Millisecond; return connected() }, see)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !transient(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (p *person) watchOnce(ctx context.Context, connected func() error, see func(environment)) error {
	ws, err := p.dial(ctx, "/api/v1/events", "", "learnos.events.v1")
	if err != nil {
		return err
	}
	defer ws.Close()
	stop := context.AfterFunc(ctx, func() { ws.Close() })
	defer stop()
	ws.SetReadLimit(1 << 20)
	if err := connected(); err != nil {
		return err
	}
	for {
		_, data, err := ws.ReadMessage()
		if err != nil {
			return fmt.Errorf("the gateway's events broke off: %w", err)
		}
		var ev event
		var env environment
		if json.Unmarshal(data, &ev) == nil && ev.Type == "environment" && json.Unmarshal(ev.Environment, &env) == nil {
			see(env)
		}
	}
}

// errFound ends a watch that has seen what it waited for.
var errFound = errors.New("found")

// waitRunning waits until environment id runs, calling see at each change. An environment that failed or was
// deleted instead is an error that says why.
func (p *person) waitRunning(ctx context.Context, env environment, see func(environment)) (environment, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	check := func(e environment) {
		if e.ID != env.ID || ctx.Err() != nil {
			return
		}
		env = e
		see(e)
		if e.State == "running" || e.ended() {
			cancel(errFound)
		}
	}
	check(env)
	var err error
	if ctx.Err() == nil {
		err = p.watch(ctx, func() error {
			// It may have ended while nobody was listening, and then no event will tell.
			e, err := p.environment(ctx, env.ID)
			if err == nil {
				check(e)
			}
			return err
		}, check)
	}
	if !errors.Is(context.Cause(ctx), errFound) {
		return env, err
	}
	if env.State != "running" {
		return env, &endedError{env}
	}
	return env, nil
}
