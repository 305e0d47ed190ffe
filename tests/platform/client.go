package platform

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// Client is a person at the platform's HTTP API, written from the API's
// document alone: it shares no code with the server, so the two check each
// other.
type Client struct {
	base  string
	token string
}

// Environment is what the API tells of one.
type Environment struct {
	ID       string           `json:"id"`
	Name     string           `json:"name"`
	Image    string           `json:"image"`
	State    string           `json:"state"`
	Stage    string           `json:"stage"`
	Reason   string           `json:"reason"`
	Node     string           `json:"node"`
	Address  string           `json:"address"`
	Deadline time.Time        `json:"deadline"`
	Timings  map[string]int64 `json:"timings"` // microseconds a stage
}

// APIError is an answer of 400 and above.
type APIError struct {
	Status        int
	Code, Message string
	Hint          string
}

func (e *APIError) Error() string {
	return fmt.Sprintf("%d %s: %s (%s)", e.Status, e.Code, e.Message, e.Hint)
}

// Register makes a person and returns a client signed in as them.
func (p *Platform) Register(ctx context.Context, user, password string) (*Client, error) {
	return p.sign(ctx, "/auth/register", user, password)
}

// Login signs a person in.
func (p *Platform) Login(ctx context.Context, user, password string) (*Client, error) {
	return p.sign(ctx, "/auth/login", user, password)
}

func (p *Platform) sign(ctx context.Context, path, user, password string) (*Client, error) {
	c := &Client{base: p.WebURL}
	var session struct {
		AccessToken string `json:"accessToken"`
	}
	if err := c.Do(ctx, http.MethodPost, path, map[string]any{"username": user, "password": password}, &session); err != nil {
		return nil, err
	}
	c.token = session.AccessToken
	return c, nil
}

// Do makes one call of /api/v1; in and out may be nil.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/api/v1"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		var e struct {
			Error struct{ Code, Message, Hint string }
		}
		_ = json.Unmarshal(data, &e)
		return &APIError{resp.StatusCode, e.Error.Code, e.Error.Message, e.Error.Hint}
	}
	if out == nil || len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s %s: %w in %.200q", method, path, err, data)
	}
	return nil
}

// Create asks for an environment of an image.
func (c *Client) Create(ctx context.Context, image string) (*Environment, error) {
	env := new(Environment)
	return env, c.Do(ctx, http.MethodPost, "/environments", map[string]string{"image": image}, env)
}

// Environment reads one.
func (c *Client) Environment(ctx context.Context, id string) (*Environment, error) {
	env := new(Environment)
	return env, c.Do(ctx, http.MethodGet, "/environments/"+id, nil, env)
}

// Delete ends an environment and returns when it is gone.
func (c *Client) Delete(ctx context.Context, id string) error {
	if err := c.Do(ctx, http.MethodDelete, "/environments/"+id, nil, nil); err != nil {
		return err
	}
	_, err := c.WaitState(ctx, id, "deleted")
	return err
}

// WaitState returns when the environment is in the state, as the events
// socket tells it; an end in any other final state is an error with its
// reason.
func (c *Client) WaitState(ctx context.Context, id, state string) (*Environment, error) {
	w, err := c.Watch(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	env, err := c.Environment(ctx, id) // what came before we listened is not told again
	if err != nil {
		return nil, err
	}
	if done, err := env.reached(state); done || err != nil {
		return env, err
	}
	return w.Until(ctx, id, state)
}

// Watch listens to what happens to a person's environments from now on.
type Watch struct{ ws *websocket.Conn }

// Watch returns when the events socket listens.
func (c *Client) Watch(ctx context.Context) (*Watch, error) {
	ws, err := c.dial(ctx, "/events", "learnos.events.v1")
	if err != nil {
		return nil, err
	}
	w := &Watch{ws}
	stop := context.AfterFunc(ctx, func() { ws.Close() })
	defer stop()
	var hello struct{ Type string }
	if err := ws.ReadJSON(&hello); err != nil || hello.Type != "hello" {
		ws.Close()
		return nil, fmt.Errorf("events socket: want hello, got %q: %w", hello.Type, errors.Join(ctx.Err(), err))
	}
	return w, nil
}

// Close ends the watch.
func (w *Watch) Close() error { return w.ws.Close() }

// Until returns when it is told that the environment is in the state; an
// end in any other final state is an error with its reason. What it is told
// of others is lost to later calls.
func (w *Watch) Until(ctx context.Context, id, state string) (*Environment, error) {
	stop := context.AfterFunc(ctx, func() { w.ws.Close() })
	defer stop()
	last := "never seen"
	for {
		var m struct {
			Type        string
			Environment json.RawMessage
		}
		if err := w.ws.ReadJSON(&m); err != nil {
			return nil, fmt.Errorf("wait for %s to be %s (last %s): %w", id, state, last, errors.Join(ctx.Err(), err))
		}
		if m.Type != "environment" {
			continue
		}
		env := new(Environment)
		if err := json.Unmarshal(m.Environment, env); err != nil {
			return nil, err
		}
		if env.ID != id {
			continue
		}
		last = env.State + " " + env.Reason
		if done, err := env.reached(state); done || err != nil {
			return env, err
		}
	}
}

func (e *Environment) reached(state string) (bool, error) {
	switch {
	case e.State == state:
		return true, nil
	case e.State == "failed" && state != "deleted" || e.State == "deleted" || e.State == "overstep":
		return false, fmt.Errorf("environment %s ended as %s: %s", e.ID, e.State, e.Reason)
	}
	return false, nil
}

func (c *Client) dial(ctx context.Context, path, protocol string) (*websocket.Conn, error) {
	d := websocket.Dialer{Subprotocols: []string{protocol}}
	ws, resp, err := d.DialContext(ctx, "ws"+strings.TrimPrefix(c.base, "http")+"/api/v1"+path,
		http.Header{"Authorization": {"Bearer " + c.token}})
	if err != nil {
		if resp != nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
			return nil, fmt.Errorf("websocket %s: %w: %s %s", path, err, resp.Status, body)
		}
		return nil, fmt.Errorf("websocket %s: %w", path, err)
	}
	return ws, nil
}

// Session starts a command, or the image's shell when args is empty.
func (c *Client) Session(ctx context.Context, env string, tty bool, args ...string) (string, error) {
	var s struct{ ID string }
	in := map[string]any{"tty": tty, "cols": 80, "rows": 24}
	if len(args) > 0 {
		in["args"] = args
	}
	return s.ID, c.Do(ctx, http.MethodPost, "/environments/"+env+"/sessions", in, &s)
}

// Terminal is an attached session.
type Terminal struct {
	ws     *websocket.Conn
	out    bytes.Buffer
	Offset uint64 // bytes of the session's output seen so far
	Exit   *int32 // set when the session has ended
}

// Attach joins a session at an offset of its output; a negative one asks for
// everything that is still kept.
func (c *Client) Attach(ctx context.Context, env, session string, offset int64) (*Terminal, error) {
	q := "?cols=80&rows=24"
	if offset >= 0 {
		q += fmt.Sprintf("&offset=%d", offset)
	}
	ws, err := c.dial(ctx, "/environments/"+env+"/sessions/"+session+"/attach"+q, "learnos.term.v1")
	if err != nil {
		return nil, err
	}
	t := &Terminal{ws: ws}
	// The node says hello first; a node that is away closes instead.
	if err := t.Read(ctx); err != nil {
		ws.Close()
		return nil, err
	}
	return t, nil
}

// Type sends what a person types.
func (t *Terminal) Type(s string) error {
	return t.ws.WriteMessage(websocket.BinaryMessage, append([]byte{0x01}, s...))
}

// Read takes the next frame in, acknowledging output.
func (t *Terminal) Read(ctx context.Context) error {
	if d, ok := ctx.Deadline(); ok {
		_ = t.ws.SetReadDeadline(d)
	}
	_, f, err := t.ws.ReadMessage()
	if err != nil {
		return err
	}
	if len(f) == 0 {
		return errors.New("empty frame")
	}
	switch body := f[1:]; f[0] {
	case 0x11:
		if len(body) < 8 {
			return fmt.Errorf("output frame of %d bytes", len(f))
		}
		t.Offset = binary.BigEndian.Uint64(body) + uint64(len(body)-8)
		t.out.Write(body[8:])
		ack := binary.BigEndian.AppendUint64([]byte{0x03}, t.Offset)
		return t.ws.WriteMessage(websocket.BinaryMessage, ack)
	case 0x12:
		t.out.Write(body)
	case 0x13:
		if len(body) < 4 {
			return fmt.Errorf("exit frame of %d bytes", len(f))
		}
		code := int32(binary.BigEndian.Uint32(body))
		t.Exit = &code
	case 0x14:
		if len(body) < 8 {
			return fmt.Errorf("hello frame of %d bytes", len(f))
		}
		t.Offset = binary.BigEndian.Uint64(body)
	case 0x15:
		return fmt.Errorf("terminal: %s", body)
	}
	return nil
}

// Expect reads until the output holds want, and returns all of it.
func (t *Terminal) Expect(ctx context.Context, want string) (string, error) {
	for !strings.Contains(t.out.String(), want) {
		if t.Exit != nil {
			return t.out.String(), fmt.Errorf("the session ended with %d before %q came: %.2000q", *t.Exit, want, t.out.String())
		}
		if err := t.Read(ctx); err != nil {
			return t.out.String(), fmt.Errorf("waiting for %q after %.2000q: %w", want, t.out.String(), err)
		}
	}
	return t.out.String(), nil
}

// Forget drops the output seen so far, so that the next Expect sees only what
// comes after.
func (t *Terminal) Forget() { t.out.Reset() }

// Close leaves the session; it goes on.
func (t *Terminal) Close() error { return t.ws.Close() }
