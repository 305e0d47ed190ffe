package api

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/learnos/learnos/gateway/auth"
	"github.com/learnos/learnos/gateway/catalogue"
	"github.com/learnos/learnos/gateway/fleet"
	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/store"
	"github.com/learnos/learnos/internal/queue"
)

// imageAnswer is an image as the API shows it.
type imageAnswer struct {
	ID            int64    `json:"id"`
	Name          string   `json:"name"`
	Title         string   `json:"title"`
	TitleZh       string   `json:"titleZh"`
	Description   string   `json:"description"`
	DescriptionZh string   `json:"descriptionZh"`
	Source        string   `json:"source"`
	Insecure      bool     `json:"insecure"`
	Command       []string `json:"command"`
	Logo          string   `json:"logo"`
	store.Rations
	CapAdd          []string `json:"capAdd"`
	LifetimeSeconds int64    `json:"lifetimeSeconds"`
	Enabled         bool     `json:"enabled"`
	Position        int      `json:"position"`
}

func imageView(i store.Image) imageAnswer {
	return imageAnswer{ID: i.ID, Name: i.Name, Title: i.Title, TitleZh: i.TitleZh, Description: i.Description, DescriptionZh: i.DescriptionZh,
		Source: i.Source, Insecure: i.Insecure, Command: list(i.Command), Logo: i.Logo, Rations: i.Rations, CapAdd: list(i.CapAdd), LifetimeSeconds: i.LifetimeSeconds,
		Enabled: i.Enabled, Position: i.Position}
}

// list is never null in JSON.
func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

func (a *API) listImages(c *gin.Context) error {
	images, err := a.Store.Images(c.Request.Context(), who(c).Admin)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	views := make([]imageAnswer, len(images))
	for n, i := range images {
		views[n] = imageView(i)
	}
	c.JSON(http.StatusOK, views)
	return nil
}

// imageRequest holds what a request says of an image; nil is unsaid.
type imageRequest struct {
	Name            *string   `json:"name"`
	Title           *string   `json:"title"`
	TitleZh         *string   `json:"titleZh"`
	Description     *string   `json:"description"`
	DescriptionZh   *string   `json:"descriptionZh"`
	Source          *string   `json:"source"`
	Insecure        *bool     `json:"insecure"`
	Command         *[]string `json:"command"`
	Logo            *string   `json:"logo"`
	MemoryBytes     *int64    `json:"memoryBytes"`
	MemoryHighBytes *int64    `json:"memoryHighBytes"`
	CPUs            *float64  `json:"cpus"`
	PIDs            *int64    `json:"pids"`
	DiskBytes       *int64    `json:"diskBytes"`
	NetUpBits       *int64    `json:"netUpBits"`
	NetDownBits     *int64    `json:"netDownBits"`
	IOReadBPS       *int64    `json:"ioReadBps"`
	IOWriteBPS      *int64    `json:"ioWriteBps"`
	IOReadIOPS      *int64    `json:"ioReadIops"`
	IOWriteIOPS     *int64    `json:"ioWriteIops"`
	NetQuotaBytes   *int64    `json:"netQuotaBytes"`
	BlkQuotaBytes   *int64    `json:"blkQuotaBytes"`
	CapAdd          *[]string `json:"capAdd"`
	LifetimeSeconds *int64    `json:"lifetimeSeconds"`
	Enabled         *bool     `json:"enabled"`
	Position        *int      `json:"position"`
}

func put[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// apply puts what was said into i and checks the whole.
func (in *imageRequest) apply(i *store.Image) error {
	put(&i.Name, in.Name)
	put(&i.Title, in.Title)
	put(&i.TitleZh, in.TitleZh)
	put(&i.Description, in.Description)
	put(&i.DescriptionZh, in.DescriptionZh)
	put(&i.Source, in.Source)
	put(&i.Insecure, in.Insecure)
	put(&i.Command, in.Command)
	put(&i.Logo, in.Logo)
	put(&i.MemoryBytes, in.MemoryBytes)
	put(&i.MemoryHighBytes, in.MemoryHighBytes)
	put(&i.CPUs, in.CPUs)
	put(&i.PIDs, in.PIDs)
	put(&i.DiskBytes, in.DiskBytes)
	put(&i.NetUpBits, in.NetUpBits)
	put(&i.NetDownBits, in.NetDownBits)
	put(&i.IOReadBPS, in.IOReadBPS)
	put(&i.IOWriteBPS, in.IOWriteBPS)
	put(&i.IOReadIOPS, in.IOReadIOPS)
	put(&i.IOWriteIOPS, in.IOWriteIOPS)
	put(&i.NetQuotaBytes, in.NetQuotaBytes)
	put(&i.BlkQuotaBytes, in.BlkQuotaBytes)
	put(&i.CapAdd, in.CapAdd)
	put(&i.LifetimeSeconds, in.LifetimeSeconds)
	put(&i.Enabled, in.Enabled)
	put(&i.Position, in.Position)
	return catalogue.Check(i)
}

func nameTaken() *problem.Problem {
	p := problem.New(http.StatusConflict, "name_taken", "An image of that name is there already.", "Change that one, or choose another name.")
	p.Field = "name"
	return p
}

func (a *API) createImage(c *gin.Context) error {
	var in imageRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	i := catalogue.Defaults()
	i.CreatedAt = store.At(a.now())
	if err := in.apply(&i); err != nil {
		return err
	}
	if i.Title == "" {
		i.Title = i.Name
	}
	if i.TitleZh == "" {
		i.TitleZh = i.Title
	}
	if err := a.Store.CreateImage(c.Request.Context(), &i); errors.Is(err, store.ErrConflict) {
		return nameTaken()
	} else if err != nil {
		return fmt.Errorf("insert the image: %w", err)
	}
	a.audit(c, who(c).User, "image_created", i.Name, grants(i))
	c.JSON(http.StatusCreated, imageView(i))
	return nil
}

// grants is what the audit log says of an image: where it is from, and what root inside may do besides the usual.
func grants(i store.Image) string {
	return strings.Join(append([]string{i.Source}, i.CapAdd...), " + ")
}

func (a *API) updateImage(c *gin.Context) error {
	id, err := numeric(c, "image")
	if err != nil {
		return err
	}
	var in imageRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	if in == (imageRequest{}) {
		return problem.New(http.StatusUnprocessableEntity, "nothing_to_change", "The request names no field.", "Send the fields that shall change.")
	}
	i, err := a.Store.UpdateImage(c.Request.Context(), id, in.apply)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return problem.NotFound("image")
	case errors.Is(err, store.ErrConflict):
		return nameTaken()
	case err != nil:
		return err
	}
	a.audit(c, who(c).User, "image_changed", i.Name, grants(i))
	c.JSON(http.StatusOK, imageView(i))
	return nil
}

func (a *API) deleteImage(c *gin.Context) error {
	id, err := numeric(c, "image")
	if err != nil {
		return err
	}
	i, err := a.Store.DeleteImage(c.Request.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return problem.NotFound("image")
	}
	if err != nil {
		return fmt.Errorf("remove the image: %w", err)
	}
	a.audit(c, who(c).User, "image_removed", i.Name, "")
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
	return nil
}

func (a *API) listNodes(c *gin.Context) error {
	if !a.Fleet.Healthy() {
		return fleet.Away()
	}
	nodes, connected := a.Fleet.Nodes(), a.Tunnel.Nodes()
	slices.SortFunc(nodes, func(x, y queue.NodeInfo) int { return strings.Compare(x.Name, y.Name) })
	views := make([]gin.H, len(nodes))
	for i, n := range nodes {
		lacks := n.Lacks
		if lacks == nil {
			lacks = map[string]string{}
		}
		views[i] = gin.H{"name": n.Name, "version": n.Version, "address": n.Address, "freeMemory": n.FreeMemory, "totalMemory": n.TotalMemory, "cpus": n.CPUs,
			"environments": n.Environments, "maxEnvironments": n.MaxEnvironments, "spares": n.Spares, "diskFree": n.DiskFree, "diskTotal": n.DiskTotal, "diskRoom": n.DiskRoom, "lacks": lacks,
			"connected": slices.Contains(connected, n.Name), "updatedAt": n.UpdatedAt.UTC()}
	}
	c.JSON(http.StatusOK, views)
	return nil
}

func adminUserView(u store.User, active int) gin.H {
	return gin.H{"id": u.ID, "username": u.Username, "email": u.Email, "admin": u.Admin, "disabled": u.Disabled, "maxEnvironments": u.MaxEnvironments,
		"environments": active, "createdAt": u.CreatedAt.Std(), "lastLoginAt": u.LastLoginAt.Ptr()}
}

func (a *API) listUsers(c *gin.Context) error {
	users, err := a.Store.Users(c.Request.Context())
	if err != nil {
		return fmt.Errorf("list users: %w", err)
	}
	active, err := a.Store.CountActive(c.Request.Context())
	if err != nil {
		return fmt.Errorf("count environments: %w", err)
	}
	views := make([]gin.H, len(users))
	for i, u := range users {
		views[i] = adminUserView(u, active[u.ID])
	}
	c.JSON(http.StatusOK, views)
	return nil
}

type updateUserRequest struct {
	Admin           *bool   `json:"admin"`
	Disabled        *bool   `json:"disabled"`
	MaxEnvironments *int    `json:"maxEnvironments"`
	Password        *string `json:"password"`
}

func (a *API) updateUser(c *gin.Context) error {
	id, err := numeric(c, "user")
	if err != nil {
		return err
	}
	var in updateUserRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	if in == (updateUserRequest{}) {
		return problem.New(http.StatusUnprocessableEntity, "nothing_to_change", "The request names no field.", "Send the fields that shall change.")
	}
	if in.MaxEnvironments != nil && (*in.MaxEnvironments < 0 || *in.MaxEnvironments > 10_000) {
		return problem.Field("maxEnvironments", "must be 0 to 10000")
	}
	ctx, me := c.Request.Context(), who(c)
	var hash string
	if in.Password != nil {
		if err := auth.Password(*in.Password); err != nil {
			return problem.Field("password", "%s", err)
		}
		if hash, err = a.Hasher.Hash(ctx, *in.Password); err != nil {
			return err
		}
	}
	u, err := a.Store.UpdateUser(ctx, id, func(u *store.User) error {
		put(&u.Admin, in.Admin)
		put(&u.Disabled, in.Disabled)
		put(&u.MaxEnvironments, in.MaxEnvironments)
		if hash != "" {
			u.PasswordHash = hash
		}
		return nil
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return problem.NotFound("user")
	case errors.Is(err, store.ErrLastAdmin):
		return problem.New(http.StatusConflict, "last_admin", "This is the last active administrator.", "Make somebody else one first.")
	case err != nil:
		return fmt.Errorf("change the account: %w", err)
	}
	if u.Disabled || hash != "" {
		keep := ""
		if u.ID == me.ID && !u.Disabled {
			keep = me.session
		}
		ended, err := a.Store.RevokeUser(context.WithoutCancel(ctx), u.ID, keep, a.now())
		if err != nil {
			return fmt.Errorf("end the account's login sessions: %w", err)
		}
		a.sockets.end(ended...)
	}
	var what []string
	if in.Admin != nil {
		what = append(what, fmt.Sprint("admin=", *in.Admin))
	}
	if in.Disabled != nil {
		what = append(what, fmt.Sprint("disabled=", *in.Disabled))
	}
	if in.MaxEnvironments != nil {
		what = append(what, fmt.Sprint("maxEnvironments=", *in.MaxEnvironments))
	}
	if hash != "" {
		what = append(what, "password set")
	}
	a.audit(c, me.User, "user_changed", u.Username, strings.Join(what, ", "))
	active, err := a.Store.CountActive(ctx)
	if err != nil {
		return fmt.Errorf("count environments: %w", err)
	}
	c.JSON(http.StatusOK, adminUserView(u, active[u.ID]))
	return nil
}

func (a *API) listAudit(c *gin.Context) error {
	before, err := queryInt(c, "before", 1, math.MaxInt64, 0)
	if err != nil {
		return err
	}
	limit, err := queryInt(c, "limit", 1, 500, 100)
	if err != nil {
		return err
	}
	entries, err := a.Store.Audit(c.Request.Context(), before, int(limit))
	if err != nil {
		return fmt.Errorf("list the audit log: %w", err)
	}
	type view struct {
		ID         int64     `json:"id"`
		At         time.Time `json:"at"`
		UserID     int64     `json:"userId"`
		Username   string    `json:"username"`
		Action     string    `json:"action"`
		Target     string    `json:"target"`
		Detail     string    `json:"detail"`
		RemoteAddr string    `json:"remoteAddr"`
	}
	views := make([]view, len(entries))
	for i, e := range entries {
		views[i] = view{e.ID, e.At.Std(), e.UserID, e.Username, e.Action, e.Target, e.Detail, e.Address}
	}
	c.JSON(http.StatusOK, views)
	return nil
}
