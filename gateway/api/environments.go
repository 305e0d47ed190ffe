package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/learnos/learnos/gateway/fleet"
	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/stopwatch"
	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/reason"
	"github.com/learnos/learnos/internal/tunnel"
)

var (
	envForm     = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	sessionForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$`)
	labelForm   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) // RFC 1123, lower case
	varForm     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)
)

// historyPage is how many environments a history shows at most.
const historyPage = 200

// environment finds the path's environment if it is the caller's, or anybody's for an admin where admins may. Foreign
// ones are as absent as those that never were.
func (a *API) environment(c *gin.Context, admins bool) (store.Environment, error) {
	id, me := c.Param("id"), who(c)
	if !envForm.MatchString(id) {
		return store.Environment{}, problem.NotFound("environment")
	}
	e, err := a.Store.Environment(c.Request.Context(), id)
	if errors.Is(err, store.ErrNotFound) || (err == nil && e.UserID != me.ID && !(admins && me.Admin)) {
		return store.Environment{}, problem.NotFound("environment")
	}
	if err != nil {
		return e, fmt.Errorf("read the environment: %w", err)
	}
	return e, nil
}

// show answers with an environment, and with what the time went into.
func (a *API) show(c *gin.Context, status int, e store.Environment) {
	stop := stopwatch.Start(c.Request.Context(), "view")
	view := a.Fleet.View(c.Request.Context(), e)
	stop()
	c.Header("Server-Timing", c.MustGet(watchKey).(*stopwatch.Watch).String())
	c.JSON(status, view)
}

func (a *API) listEnvironments(c *gin.Context) error {
	f := store.Filter{User: who(c).ID}
	switch all := c.Query("all"); all {
	case "":
	case "history":
		f.Deleted, f.Limit = true, historyPage
	default:
		return problem.Field("all", "can only be history")
	}
	switch users := c.Query("users"); users {
	case "":
	case "all":
		if err := a.adminOnly(c); err != nil {
			return err
		}
		f.User = 0
	default:
		return problem.Field("users", "can only be all")
	}
	rows, err := a.Store.Environments(c.Request.Context(), f)
	if err != nil {
		return fmt.Errorf("list environments: %w", err)
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), 3*time.Second) // for places in the queue
	defer cancel()
	views := make([]fleet.View, len(rows))
	for i, e := range rows {
		views[i] = a.Fleet.View(ctx, e)
	}
	c.JSON(http.StatusOK, views)
	return nil
}

type createEnvironmentRequest struct {
	Image string `json:"image"`
	Name  string `json:"name"`
}

func (a *API) createEnvironment(c *gin.Context) error {
	var in createEnvironmentRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	if in.Image == "" || len(in.Image) > 63 {
		return problem.Field("image", "must name an image of the catalogue")
	}
	if in.Name != "" && !labelForm.MatchString(in.Name) {
		return problem.Field("name", "must be 1 to 63 of a-z, 0-9 and '-', not at either end")
	}
	ctx := c.Request.Context()
	image, err := a.Store.ImageByName(ctx, in.Image)
	if errors.Is(err, store.ErrNotFound) || (err == nil && !image.Enabled) {
		p := problem.New(http.StatusNotFound, "no_such_image", fmt.Sprintf("There is no image %q in the catalogue.", clip(in.Image, 63)), "GET /api/v1/images lists what there is.")
		p.Field = "image"
		return p
	}
	if err != nil {
		return fmt.Errorf("look for the image: %w", err)
	}
	e, err := a.Fleet.Create(ctx, who(c).User, image, in.Name)
	if err != nil {
		return err
	}
	a.show(c, http.StatusAccepted, e)
	return nil
}

func (a *API) getEnvironment(c *gin.Context) error {
	e, err := a.environment(c, true)
	if err != nil {
		return err
	}
	a.show(c, http.StatusOK, e)
	return nil
}

func (a *API) deleteEnvironment(c *gin.Context) error {
	e, err := a.environment(c, true)
	if err != nil {
		return err
	}
	var force bool
	switch text := c.Query("force"); text {
	case "", "false":
	case "true":
		force = true
	default:
		return problem.Field("force", "must be true or false")
	}
	me := who(c)
	if e, err = a.Fleet.Delete(c.Request.Context(), e.ID, force, me.Admin); err != nil {
		return err
	}
	if force || e.UserID != me.ID {
		a.audit(c, me.User, "environment_deleted", e.ID, fmt.Sprintf("of %s, force=%t", e.Owner, force))
	}
	a.show(c, http.StatusAccepted, e)
	return nil
}

type extendRequest struct {
	Seconds int64 `json:"seconds"`
}

func (a *API) extendEnvironment(c *gin.Context) error {
	e, err := a.environment(c, false)
	if err != nil {
		return err
	}
	var in extendRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	if in.Seconds < 1 || in.Seconds > 365*24*3600 {
		return problem.Field("seconds", "must be 1 to %d", 365*24*3600)
	}
	if e, err = a.Fleet.Extend(c.Request.Context(), e, time.Duration(in.Seconds)*time.Second); err != nil {
		return err
	}
	a.show(c, http.StatusOK, e)
	return nil
}

func (a *API) retryEnvironment(c *gin.Context) error {
	e, err := a.environment(c, false)
	if err != nil {
		return err
	}
	if e, err = a.Fleet.Retry(c.Request.Context(), who(c).User, e.ID); err != nil {
		return err
	}
	a.show(c, http.StatusAccepted, e)
	return nil
}

func (a *API) environmentHistory(c *gin.Context) error {
	e, err := a.environment(c, true)
	if err != nil {
		return err
	}
	list, err := a.Store.History(c.Request.Context(), e.ID)
	if err != nil {
		return fmt.Errorf("read the history: %w", err)
	}
	views := make([]gin.H, len(list))
	for i, h := range list {
		code, values := reason.Parse(h.Reason)
		views[i] = gin.H{"at": h.At.Std(), "state": h.State, "reason": h.Reason, "reasonCode": code, "reasonValues": values}
	}
	c.JSON(http.StatusOK, views)
	return nil
}

func (a *API) listSessions(c *gin.Context) error {
	e, err := a.environment(c, false)
	if err != nil {
		return err
	}
	list, err := a.Fleet.Sessions(c.Request.Context(), e)
	if err != nil {
		return err
	}
	views := make([]gin.H, len(list))
	for i, s := range list {
		if s.Args == nil {
			s.Args = []string{}
		}
		views[i] = gin.H{"id": s.ID, "args": s.Args, "tty": s.TTY, "exited": s.Exited, "exitCode": s.ExitCode, "createdAt": s.CreatedAt.UTC()}
	}
	c.JSON(http.StatusOK, views)
	return nil
}

type createSessionRequest struct {
	Args []string `json:"args"`
	TTY  *bool    `json:"tty"`
	Cols int      `json:"cols"`
	Rows int      `json:"rows"`
	Cwd  string   `json:"cwd"`
	User string   `json:"user"`
	Env  []string `json:"env"`
}

// check turns what was asked into what the node is asked.
func (in *createSessionRequest) check() (tunnel.Request, error) {
	none := tunnel.Request{}
	text := func(s string, most int) bool {
		return len(s) <= most && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
	}
	size := 0
	if len(in.Args) > 256 {
		return none, problem.Field("args", "must have at most 256 words")
	}
	for _, arg := range in.Args {
		if size += len(arg); !text(arg, 16<<10) {
			return none, problem.Field("args", "has a word that is longer than 16 KiB, not UTF-8, or has a NUL")
		}
	}
	if len(in.Env) > 128 {
		return none, problem.Field("env", "must have at most 128 variables")
	}
	for _, v := range in.Env {
		if size += len(v); !text(v, 8<<10) || !varForm.MatchString(v) {
			return none, problem.Field("env", "must be of NAME=value, each at most 8 KiB of UTF-8 without NUL")
		}
	}
	switch {
	case size > 40<<10:
		return none, problem.Field("args", "and env have more than 40 KiB together")
	case !text(in.Cwd, 4096) || (in.Cwd != "" && in.Cwd[0] != '/'):
		return none, problem.Field("cwd", "must be an absolute path")
	case !text(in.User, 128):
		return none, problem.Field("user", "must be a name, a number, or number:number")
	case in.Cols < 0 || in.Cols > 1000:
		return none, problem.Field("cols", "must be 0 to 1000")
	case in.Rows < 0 || in.Rows > 1000:
		return none, problem.Field("rows", "must be 0 to 1000")
	}
	return tunnel.Request{Args: in.Args, Vars: in.Env, Cwd: in.Cwd, User: in.User, TTY: in.TTY == nil || *in.TTY, Cols: uint16(in.Cols), Rows: uint16(in.Rows)}, nil
}

func (a *API) createSession(c *gin.Context) error {
	e, err := a.environment(c, false)
	if err != nil {
		return err
	}
	var in createSessionRequest
	if err := bind(c, &in, true); err != nil {
		return err
	}
	req, err := in.check()
	if err != nil {
		return err
	}
	id, err := a.Fleet.StartSession(c.Request.Context(), e, req)
	if err != nil {
		return err
	}
	c.JSON(http.StatusCreated, gin.H{"id": id})
	return nil
}

func (a *API) closeSession(c *gin.Context) error {
	e, err := a.environment(c, false)
	if err != nil {
		return err
	}
	sid := c.Param("sid")
	if !sessionForm.MatchString(sid) {
		return problem.NotFound("session")
	}
	if err := a.Fleet.CloseSession(c.Request.Context(), e, sid); err != nil {
		return err
	}
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
	return nil
}
