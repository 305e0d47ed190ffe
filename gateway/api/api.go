// Package api is the gateway's HTTP interface: who asks, whether they may, what they said, and how the answer looks.
// The document in package openapi describes every route of it. What the routes do is done by the packages beside it.
package api

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/learnos/learnos/gateway/auth"
	"github.com/learnos/learnos/gateway/events"
	"github.com/learnos/learnos/gateway/fleet"
	"github.com/learnos/learnos/gateway/openapi"
	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/stopwatch"
	"github.com/learnos/learnos/gateway/store"
)

// Options of an API; all are needed.
type Options struct {
	Store  *store.Store
	Fleet  *fleet.Fleet
	Events *events.Hub
	Tunnel fleet.Tunnel
	// Ready tells whether nodes can connect.
	Ready   func() bool
	Keys    *auth.Keyring
	Hasher  *auth.Hasher
	Sender  auth.CodeSender
	CodeKey []byte // keys the hashes of verification codes
	DoorKey []byte // what the web process signs its word with, as raw bytes
	Log     *slog.Logger

	Version          string
	SSHAddr          string
	Origins          []string // besides the host's own, e.g. https://learn.example.org
	AccessTTL        time.Duration
	RefreshTTL       time.Duration
	OpenRegistration bool
	RequireCode      bool
	LoginPerMinute   int // failed logins per address, and per account; 0: no limit
	RegisterPerHour  int // accounts per address; 0: no limit
	Policy           fleet.Policy
}

// API answers requests. It is safe for concurrent use.
type API struct {
	Options
	now      func() time.Time
	engine   *gin.Engine
	document []byte
	doorHex  []byte
	origins  map[string]bool
	sockets  sockets

	logins, accounts, registers, codes, codeTargets, refreshes, doorKeys *auth.Limiter
}

// New makes the interface.
func New(o Options) (*API, error) {
	document, err := openapi.JSON()
	if err != nil {
		return nil, err
	}
	a := &API{
		Options: o, now: time.Now, document: document, doorHex: []byte(hex.EncodeToString(o.DoorKey)), origins: map[string]bool{},
		logins:      auth.NewLimiter(o.LoginPerMinute, time.Minute),
		accounts:    auth.NewLimiter(o.LoginPerMinute, time.Minute),
		registers:   auth.NewLimiter(o.RegisterPerHour, time.Hour),
		codes:       auth.NewLimiter(o.RegisterPerHour, time.Hour),
		codeTargets: auth.NewLimiter(5, time.Hour),
		refreshes:   auth.NewLimiter(60, time.Minute),
		doorKeys:    auth.NewLimiter(12*o.LoginPerMinute, time.Minute), // clients try one key after the other
	}
	for _, origin := range o.Origins {
		a.origins[strings.ToLower(strings.TrimSuffix(origin, "/"))] = true
	}
	a.sockets.init()
	gin.SetMode(gin.ReleaseMode)
	a.engine = gin.New()
	a.engine.HandleMethodNotAllowed = true
	a.engine.RedirectTrailingSlash = false
	a.engine.ContextWithFallback = true
	a.routes()
	return a, nil
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.engine.ServeHTTP(w, r) }

// Routes lists method and path of every route, in gin's form.
func (a *API) Routes() gin.RoutesInfo { return a.engine.Routes() }

func (a *API) routes() {
	r := a.engine
	r.Use(a.observe, a.guard)
	r.NoRoute(a.handle(func(c *gin.Context) error {
		return problem.New(http.StatusNotFound, "no_such_route", "There is nothing at "+c.Request.URL.Path+".", "GET /api/v1/openapi.json lists what there is.")
	}))
	r.NoMethod(a.handle(func(c *gin.Context) error {
		return problem.New(http.StatusMethodNotAllowed, "method_not_allowed", c.Request.Method+" does not work here.", "GET /api/v1/openapi.json lists what does.")
	}))

	r.GET("/healthz", a.handle(a.health))
	v1 := r.Group("/api/v1")
	v1.GET("/openapi.json", a.handle(a.openapi))
	v1.GET("/config", a.handle(a.config))

	v1.POST("/auth/register", a.handle(a.register))
	v1.POST("/auth/login", a.handle(a.login))
	v1.POST("/auth/refresh", a.handle(a.refresh))
	v1.POST("/auth/logout", a.handle(a.logout))
	v1.POST("/auth/code", a.handle(a.sendCode))

	user := v1.Group("", a.handle(a.authenticate))
	user.GET("/me", a.handle(a.me))
	user.PATCH("/me", a.handle(a.updateMe))
	user.GET("/me/keys", a.handle(a.listKeys))
	user.POST("/me/keys", a.handle(a.addKey))
	user.DELETE("/me/keys/:id", a.handle(a.deleteKey))
	user.GET("/images", a.handle(a.listImages))
	user.GET("/environments", a.handle(a.listEnvironments))
	user.POST("/environments", a.handle(a.createEnvironment))
	user.GET("/environments/:id", a.handle(a.getEnvironment))
	user.DELETE("/environments/:id", a.handle(a.deleteEnvironment))
	user.POST("/environments/:id/extend", a.handle(a.extendEnvironment))
	user.POST("/environments/:id/retry", a.handle(a.retryEnvironment))
	user.GET("/environments/:id/history", a.handle(a.environmentHistory))
	user.GET("/environments/:id/sessions", a.handle(a.listSessions))
	user.POST("/environments/:id/sessions", a.handle(a.createSession))
	user.DELETE("/environments/:id/sessions/:sid", a.handle(a.closeSession))
	user.GET("/environments/:id/sessions/:sid/attach", a.handle(a.attach))
	user.GET("/events", a.handle(a.events))

	admin := user.Group("", a.handle(a.adminOnly))
	admin.POST("/images", a.handle(a.createImage))
	admin.PATCH("/images/:id", a.handle(a.updateImage))
	admin.DELETE("/images/:id", a.handle(a.deleteImage))
	admin.GET("/nodes", a.handle(a.listNodes))
	admin.GET("/users", a.handle(a.listUsers))
	admin.PATCH("/users/:id", a.handle(a.updateUser))
	admin.GET("/audit", a.handle(a.listAudit))

	door := r.Group("/internal/v1/door", a.handle(a.doorOnly))
	door.POST("/password", a.handle(a.doorPassword))
	door.POST("/key", a.handle(a.doorKey))
}

// maxBody is how much of a request is read, in bytes.
const maxBody = 64 << 10

const watchKey = "learnos.watch"

// observe logs requests, and turns a panic into an answer.
func (a *API) observe(c *gin.Context) {
	start := a.now()
	ctx, watch := stopwatch.With(c.Request.Context())
	c.Request = c.Request.WithContext(ctx)
	c.Set(watchKey, watch)
	defer func() {
		if cause := recover(); cause != nil {
			if cause == http.ErrAbortHandler {
				panic(cause)
			}
			a.Log.Error("panic in a handler", "method", c.Request.Method, "path", c.FullPath(), "cause", cause)
			if !c.Writer.Written() {
				a.fail(c, errors.New("panic"))
			}
		}
		a.Log.Debug("request", "method", c.Request.Method, "path", c.FullPath(), "status", c.Writer.Status(), "took", time.Since(start), "from", a.address(c))
	}()
	c.Next()
}

// guard bounds the body and sets what every answer says.
func (a *API) guard(c *gin.Context) {
	c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, maxBody)
	h := c.Writer.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	c.Next()
}

// handle lets a handler return its problem.
func (a *API) handle(fn func(*gin.Context) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := fn(c); err != nil {
			a.fail(c, err)
		}
	}
}

// fail answers with a problem. Errors that are none are ours, not the client's: they are logged and not shown.
func (a *API) fail(c *gin.Context, err error) {
	p := a.problem(c, err)
	if p.RetryAfter > 0 {
		c.Header("Retry-After", seconds(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		c.Header("WWW-Authenticate", `Bearer realm="learnos"`)
	}
	c.AbortWithStatusJSON(p.Status, gin.H{"error": p})
}

func (a *API) problem(c *gin.Context, err error) *problem.Problem {
	var p *problem.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, auth.ErrBusy):
		return problem.New(http.StatusServiceUnavailable, "busy", "Too many people log in at this moment.", "Try again in a second.").After(time.Second)
	case errors.Is(err, context.Canceled) && c.Request.Context().Err() != nil:
		return problem.New(499, "client_gone", "The client went away.", "")
	}
	a.Log.Error("request failed", "method", c.Request.Method, "path", c.FullPath(), "error", err)
	if errors.Is(err, store.ErrAway) || a.Store.Ping(context.WithoutCancel(c.Request.Context())) != nil {
		return problem.New(http.StatusServiceUnavailable, "store_unavailable", "The database does not answer.", "Try again in a few seconds.").After(5 * time.Second)
	}
	return problem.New(http.StatusInternalServerError, "internal", "Something went wrong on our side.", "Try again; the gateway's log has the cause.")
}

// fromDoor tells whether the request came through our own web process or SSH door.
func (a *API) fromDoor(c *gin.Context) bool {
	return subtle.ConstantTimeCompare([]byte(c.GetHeader("X-Learnos-Door")), a.doorHex) == 1
}

// address is the client's IP address. What X-Forwarded-For says counts only under the door's signature.
func (a *API) address(c *gin.Context) string {
	if forwarded := c.GetHeader("X-Forwarded-For"); forwarded != "" && a.fromDoor(c) {
		first, _, _ := strings.Cut(forwarded, ",")
		return cleanAddress(strings.TrimSpace(first))
	}
	return cleanAddress(c.Request.RemoteAddr)
}

// cleanAddress makes an IP address of an address with or without a port; what is neither is clipped.
func cleanAddress(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return ip.Unmap().WithZone("").String()
	}
	return clip(strings.ToValidUTF8(s, "?"), 64)
}

// clip bounds text to a column's size.
func clip(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// overTLS tells whether the client's connection is encrypted, as far as we may believe.
func (a *API) overTLS(c *gin.Context) bool {
	return c.Request.TLS != nil || (c.GetHeader("X-Forwarded-Proto") == "https" && a.fromDoor(c))
}

// audit notes a security-relevant action. It is no reason to fail the request that it could not be noted.
func (a *API) audit(c *gin.Context, u store.User, action, target, detail string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Request.Context()), 5*time.Second)
	defer cancel()
	err := a.Store.AddAudit(ctx, &store.Audit{At: store.At(a.now()), UserID: u.ID, Username: clip(u.Username, 64), Action: action,
		Target: clip(target, 255), Detail: clip(detail, 512), Address: a.address(c)})
	if err != nil {
		a.Log.Error("write the audit log", "action", action, "user", u.Username, "error", err)
	}
}

// Run closes the websockets of login sessions that ended elsewhere (on another gateway, by age) and forgets old rows,
// until ctx ends; then it closes all websockets and waits for them.
func (a *API) Run(ctx context.Context) {
	check, purge := time.NewTicker(10*time.Second), time.NewTicker(time.Hour)
	defer check.Stop()
	defer purge.Stop()
	for {
		select {
		case <-ctx.Done():
			a.sockets.shut()
			return
		case <-check.C:
			if ids := a.sockets.sessions(); len(ids) > 0 {
				ended, err := a.Store.Ended(ctx, ids, a.now())
				if err != nil {
					a.Log.Warn("look for ended logins", "error", err)
				}
				a.sockets.end(ended...)
			}
		case <-purge.C:
			if n, err := a.Store.Purge(ctx, a.now()); err != nil {
				a.Log.Warn("forget old rows", "error", err)
			} else if n > 0 {
				a.Log.Debug("forgot old rows", "rows", n)
			}
		}
	}
}

func (a *API) health(c *gin.Context) error {
	ctx, cancel := context.WithTimeout(c.Request.Context(), 2*time.Second)
	defer cancel()
	h := gin.H{"store": a.Store.Ping(ctx) == nil, "etcd": a.Fleet.Healthy(), "tunnel": a.Ready()}
	status := http.StatusOK
	switch {
	case h["store"] == false:
		h["status"], status = "unavailable", http.StatusServiceUnavailable
	case h["etcd"] == false || h["tunnel"] == false:
		h["status"] = "degraded"
	default:
		h["status"] = "ok"
	}
	c.JSON(status, h)
	return nil
}

func (a *API) openapi(c *gin.Context) error {
	c.Data(http.StatusOK, "application/json", a.document)
	return nil
}

func (a *API) config(c *gin.Context) error {
	c.JSON(http.StatusOK, gin.H{"registration": a.OpenRegistration, "requireCode": a.RequireCode, "version": a.Version, "sshAddr": a.SSHAddr,
		"maxEnvironments": a.Policy.MaxEnvironments, "idleTimeoutSeconds": int(a.Policy.IdleTimeout.Seconds()),
		"maxLifetimeSeconds": int(a.Policy.MaxLifetime.Seconds())})
	return nil
}

// sockets are the open websockets by login session.
type sockets struct {
	mu     sync.Mutex
	open   map[string]map[*socket]bool
	byUser map[int64]int
	closed bool
	wg     sync.WaitGroup
}

type socket struct {
	session string
	user    int64
	close   context.CancelCauseFunc
}

// goodbye is why a websocket is closed.
type goodbye struct {
	code   int
	reason string // JSON, at most 123 bytes
}

func (g *goodbye) Error() string { return g.reason }

func (s *sockets) init() {
	s.open, s.byUser = map[string]map[*socket]bool{}, map[int64]int{}
}

// maxSockets is how many websockets one user may have open at a time.
const maxSockets = 128

// add counts a websocket in; false when the user has too many or the server is shutting down.
func (s *sockets) add(k *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.byUser[k.user] >= maxSockets {
		return false
	}
	s.byUser[k.user]++
	if s.open[k.session] == nil {
		s.open[k.session] = map[*socket]bool{}
	}
	s.open[k.session][k] = true
	s.wg.Add(1)
	return true
}

func (s *sockets) remove(k *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open[k.session], k)
	if len(s.open[k.session]) == 0 {
		delete(s.open, k.session)
	}
	if s.byUser[k.user]--; s.byUser[k.user] == 0 {
		delete(s.byUser, k.user)
	}
	s.wg.Done()
}

func (s *sockets) sessions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.open))
	for id := range s.open {
		ids = append(ids, id)
	}
	return ids
}

// end closes the websockets of login sessions that have ended.
func (s *sockets) end(sessions ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range sessions {
		for k := range s.open[id] {
			k.close(&goodbye{4401, `{"code":"session_ended","hint":"Log in again."}`})
		}
	}
}

// shut closes all and waits for their handlers.
func (s *sockets) shut() {
	s.mu.Lock()
	s.closed = true
	for _, set := range s.open {
		for k := range set {
			k.close(&goodbye{1012, `{"code":"restarting","hint":"Connect again in a few seconds."}`})
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
}
