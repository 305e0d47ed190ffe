package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/learnos/learnos/gateway/auth"
	"github.com/learnos/learnos/gateway/problem"
	"github.com/learnos/learnos/gateway/store"
)

const (
	codeLifetime = 10 * time.Minute
	codeAttempts = 5
	maxKeys      = 64
)

func (a *API) userView(u store.User) gin.H {
	return gin.H{"id": u.ID, "username": u.Username, "email": u.Email, "admin": u.Admin, "createdAt": u.CreatedAt.Std(), "maxEnvironments": a.Fleet.Allowance(u)}
}

// answer sends a login session's tokens, in the body and as cookies.
func (a *API) answer(c *gin.Context, status int, u store.User, session, refresh string) error {
	now := a.now()
	access, err := a.Keys.Sign(auth.Access{User: u.ID, Session: session, Expires: now.Add(a.AccessTTL)}, now)
	if err != nil {
		return err
	}
	a.setCookie(c, accessCookie, access, "/", a.AccessTTL)
	a.setCookie(c, refreshCookie, refresh, refreshPath, a.RefreshTTL)
	c.JSON(status, gin.H{"accessToken": access, "expiresIn": int(a.AccessTTL.Seconds()), "refreshToken": refresh, "user": a.userView(u)})
	return nil
}

// setCookie sets a cookie that scripts can't read and other sites can't send; a negative life removes it.
func (a *API) setCookie(c *gin.Context, name, value, path string, life time.Duration) {
	age := int(life.Seconds())
	if life < 0 {
		age = -1
	}
	http.SetCookie(c.Writer, &http.Cookie{Name: name, Value: value, Path: path, MaxAge: age, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: a.overTLS(c)})
}

func (a *API) dropCookies(c *gin.Context) {
	a.setCookie(c, accessCookie, "", "/", -1)
	a.setCookie(c, refreshCookie, "", refreshPath, -1)
}

// begin starts a login session for a user who has proved who they are.
func (a *API) begin(c *gin.Context, u store.User) (session, refresh string, err error) {
	now := a.now()
	refresh, hash := auth.NewRefresh()
	session = auth.NewID("s")
	err = a.Store.CreateSession(c.Request.Context(),
		&store.Session{ID: session, UserID: u.ID, CreatedAt: store.At(now), ExpiresAt: store.At(now.Add(a.RefreshTTL)), Address: a.address(c),
			Agent: clip(strings.ToValidUTF8(c.Request.UserAgent(), "?"), 255)},
		&store.RefreshToken{Hash: hash, SessionID: session, CreatedAt: store.At(now), ExpiresAt: store.At(now.Add(a.RefreshTTL))})
	if errors.Is(err, store.ErrNotFound) {
		return "", "", disabled()
	}
	if err != nil {
		return "", "", fmt.Errorf("start a login session: %w", err)
	}
	return session, refresh, nil
}

func disabled() *problem.Problem {
	return problem.New(http.StatusForbidden, "account_disabled", "This account is switched off.", "Ask whoever runs this installation.")
}

type registerRequest struct {
	Username string `json:"username"`
	Email    string `json:"email"`
	Password string `json:"password"`
	Code     string `json:"code"`
}

func (a *API) register(c *gin.Context) error {
	if err := a.sameOrigin(c, false); err != nil {
		return err
	}
	var in registerRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	if !a.OpenRegistration {
		return problem.New(http.StatusForbidden, "registration_closed", "This installation takes no new accounts.", "Ask whoever runs it for one.")
	}
	name, err := auth.Username(in.Username)
	if err != nil {
		return problem.Field("username", "%s", err)
	}
	if err := auth.Password(in.Password); err != nil {
		return problem.Field("password", "%s", err)
	}
	u := store.User{Username: name, CreatedAt: store.At(a.now())}
	if in.Email != "" {
		if u.Email, err = auth.Email(in.Email); err != nil {
			return problem.Field("email", "%s", err)
		}
	} else if a.RequireCode {
		return problem.Field("email", "is needed here: a code is sent to it")
	}
	if a.RequireCode && in.Code == "" {
		return problem.Field("code", "is needed: ask for one with POST /api/v1/auth/code")
	}
	if err := a.limit(a.registers, auth.AddressKey(a.address(c))); err != nil {
		return err
	}
	ctx := c.Request.Context()
	taken := problem.New(http.StatusConflict, "username_taken", "Somebody has that name already.", "Choose another one.")
	taken.Field = "username"
	if _, err := a.Store.UserByName(ctx, name); err == nil {
		return taken // before the code is spent
	} else if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("look for the name: %w", err)
	}
	if in.Code != "" {
		if u.VerifiedEmail, err = a.prove(ctx, u.Email, in.Code); err != nil {
			return err
		}
	}
	if u.PasswordHash, err = a.Hasher.Hash(ctx, in.Password); err != nil {
		return err
	}
	if err := a.Store.CreateUser(ctx, &u); errors.Is(err, store.ErrConflict) {
		if u.VerifiedEmail != nil {
			return problem.New(http.StatusConflict, "taken", "The name or the address belongs to an account already.", "Log in, or choose another name.")
		}
		return taken
	} else if err != nil {
		return fmt.Errorf("insert the account: %w", err)
	}
	a.audit(c, u, "register", u.Username, "")
	session, refresh, err := a.begin(c, u)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusCreated, u, session, refresh)
}

// prove spends a code and returns the address that it proves.
func (a *API) prove(ctx context.Context, email, code string) (*string, error) {
	ok, err := a.Store.UseCode(ctx, email, auth.HashCode(a.CodeKey, email, code), codeAttempts, a.now())
	if err != nil {
		return nil, err
	}
	if !ok {
		p := problem.Field("code", "is wrong, was used, or is older than %d minutes", int(codeLifetime.Minutes()))
		p.Code, p.Hint = "code_invalid", "Ask for a new one."
		return nil, p
	}
	return &email, nil
}

type loginRequest struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

func (a *API) login(c *gin.Context) error {
	if err := a.sameOrigin(c, false); err != nil {
		return err
	}
	var in loginRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	u, err := a.checkPassword(c, in.Username, in.Password, a.address(c))
	if err != nil {
		return err
	}
	a.audit(c, u, "login", u.Username, "")
	session, refresh, err := a.begin(c, u)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, u, session, refresh)
}

// checkPassword finds the user behind a name and a password. Names that don't exist cost the same and are answered
// the same. Only failures count against the limits, so a class behind one address can log in.
func (a *API) checkPassword(c *gin.Context, name, password, address string) (store.User, error) {
	name = strings.ToLower(name)
	if name == "" || len(name) > 256 {
		return store.User{}, problem.Field("username", "must have 1 to 256 characters")
	}
	if password == "" || len(password) > 1024 {
		return store.User{}, problem.Field("password", "must have 1 to 256 characters")
	}
	byAddress, byName := auth.AddressKey(address), name
	if err := a.limit(a.logins, byAddress); err != nil {
		return store.User{}, err
	}
	if err := a.limit(a.accounts, byName); err != nil {
		return store.User{}, err
	}
	ctx := c.Request.Context()
	u, err := a.Store.UserByName(ctx, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return store.User{}, fmt.Errorf("look for the account: %w", err)
	}
	ok, stale, err := a.Hasher.Verify(ctx, u.PasswordHash, password)
	if err != nil {
		a.logins.Refund(byAddress, a.now())
		a.accounts.Refund(byName, a.now())
		return store.User{}, err
	}
	if !ok {
		a.audit(c, store.User{ID: u.ID, Username: name}, "login_failed", name, "")
		return store.User{}, unauthenticated("wrong_credentials", "Name or password is wrong.", "Check both; after some attempts you have to wait a minute.")
	}
	a.logins.Refund(byAddress, a.now())
	a.accounts.Refund(byName, a.now())
	if u.Disabled {
		return store.User{}, disabled()
	}
	if stale {
		if hash, err := a.Hasher.Hash(ctx, password); err == nil {
			was := u.PasswordHash
			if _, err := a.Store.UpdateUser(ctx, u.ID, func(u *store.User) error {
				if u.PasswordHash == was {
					u.PasswordHash = hash
				}
				return nil
			}); err != nil {
				a.Log.Warn("renew a password hash", "user", u.Username, "error", err)
			}
		}
	}
	return u, nil
}

type refreshRequest struct {
	RefreshToken string `json:"refreshToken"`
}

func (a *API) refresh(c *gin.Context) error {
	var in refreshRequest
	if err := bind(c, &in, true); err != nil {
		return err
	}
	byCookie := in.RefreshToken == ""
	if byCookie {
		cookie, err := c.Request.Cookie(refreshCookie)
		if err != nil || cookie.Value == "" {
			return unauthenticated("unauthenticated", "There is no refresh token.", "Log in.")
		}
		in.RefreshToken = cookie.Value
	}
	if err := a.sameOrigin(c, byCookie); err != nil {
		return err
	}
	key := auth.AddressKey(a.address(c))
	if err := a.limit(a.refreshes, key); err != nil {
		return err
	}
	now := a.now()
	token, hash := auth.NewRefresh()
	session, u, err := a.Store.Rotate(c.Request.Context(), auth.HashRefresh(in.RefreshToken),
		&store.RefreshToken{Hash: hash, CreatedAt: store.At(now), ExpiresAt: store.At(now.Add(a.RefreshTTL))}, now)
	switch {
	case errors.Is(err, store.ErrReused):
		a.sockets.end(session.ID)
		a.audit(c, store.User{ID: session.UserID}, "refresh_reused", session.ID, "a refresh token came a second time; the session was ended")
		a.dropCookies(c)
		return unauthenticated("refresh_reused", "This refresh token was used before, so the session was ended.", "Log in again.")
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrRevoked):
		a.dropCookies(c)
		return unauthenticated("refresh_invalid", "The refresh token is not valid, or not any more.", "Log in again.")
	case err != nil:
		return fmt.Errorf("trade a refresh token: %w", err)
	}
	a.refreshes.Refund(key, now)
	return a.answer(c, http.StatusOK, u, session.ID, token)
}

// logout ends the session of the access token; without one that is good still, that of the refresh cookie.
func (a *API) logout(c *gin.Context) error {
	var user store.User
	var session string
	if err := a.authenticate(c); err == nil {
		user, session = who(c).User, who(c).session
	} else {
		cookie, missing := c.Request.Cookie(refreshCookie)
		if missing != nil || c.GetHeader("Authorization") != "" {
			return err
		}
		if err := a.sameOrigin(c, true); err != nil {
			return err
		}
		id, lookup := a.Store.SessionOf(c.Request.Context(), auth.HashRefresh(cookie.Value))
		if errors.Is(lookup, store.ErrNotFound) {
			return err
		}
		if lookup != nil {
			return fmt.Errorf("look for the login session: %w", lookup)
		}
		session = id
	}
	if err := a.Store.RevokeSession(context.WithoutCancel(c.Request.Context()), session, a.now()); err != nil {
		return fmt.Errorf("end the login session: %w", err)
	}
	a.sockets.end(session)
	a.audit(c, user, "logout", session, "")
	a.dropCookies(c)
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
	return nil
}

type codeRequest struct {
	Email string `json:"email"`
}

func (a *API) sendCode(c *gin.Context) error {
	if err := a.sameOrigin(c, false); err != nil {
		return err
	}
	var in codeRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	email, err := auth.Email(in.Email)
	if err != nil {
		return problem.Field("email", "%s", err)
	}
	if err := a.limit(a.codes, auth.AddressKey(a.address(c))); err != nil {
		return err
	}
	if err := a.limit(a.codeTargets, email); err != nil {
		return err
	}
	code, err := auth.NewCode()
	if err != nil {
		return err
	}
	ctx := c.Request.Context()
	if err := a.Store.PutCode(ctx, &store.Code{Email: email, Hash: auth.HashCode(a.CodeKey, email, code), ExpiresAt: store.At(a.now().Add(codeLifetime))}); err != nil {
		return fmt.Errorf("keep a code: %w", err)
	}
	if err := a.Sender.SendCode(ctx, email, code, codeLifetime); err != nil {
		a.Log.Error("send a code", "error", err)
		return problem.New(http.StatusServiceUnavailable, "mail_unavailable", "The code could not be sent.", "Check the address, or try again in a minute.").After(time.Minute)
	}
	a.audit(c, store.User{}, "code_sent", email, "")
	c.Status(http.StatusAccepted)
	c.Writer.WriteHeaderNow()
	return nil
}

func (a *API) me(c *gin.Context) error {
	c.JSON(http.StatusOK, a.userView(who(c).User))
	return nil
}

type updateMeRequest struct {
	Email           *string `json:"email"`
	Code            string  `json:"code"`
	Password        *string `json:"password"`
	CurrentPassword string  `json:"currentPassword"`
}

func (a *API) updateMe(c *gin.Context) error {
	var in updateMeRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	me, ctx := who(c), c.Request.Context()
	if in.CurrentPassword == "" {
		return problem.Field("currentPassword", "is needed to change an account")
	}
	var email string
	var err error
	if in.Email != nil && *in.Email != "" {
		if email, err = auth.Email(*in.Email); err != nil {
			return problem.Field("email", "%s", err)
		}
		if a.RequireCode && in.Code == "" {
			return problem.Field("code", "is needed: ask for one with POST /api/v1/auth/code")
		}
	} else if in.Email != nil && a.RequireCode {
		return problem.Field("email", "can't be empty here")
	}
	if in.Password != nil {
		if err := auth.Password(*in.Password); err != nil {
			return problem.Field("password", "%s", err)
		}
	}
	if _, err := a.checkPassword(c, me.Username, in.CurrentPassword, a.address(c)); err != nil {
		var p *problem.Problem
		if errors.As(err, &p) && p.Code == "wrong_credentials" {
			return &problem.Problem{Status: http.StatusForbidden, Code: "wrong_password", Field: "currentPassword", Message: "The current password is wrong.", Hint: "Type it again."}
		}
		return err
	}
	var proven *string
	if email != "" && in.Code != "" {
		if proven, err = a.prove(ctx, email, in.Code); err != nil {
			return err
		}
	}
	var hash string
	if in.Password != nil {
		if hash, err = a.Hasher.Hash(ctx, *in.Password); err != nil {
			return err
		}
	}
	u, err := a.Store.UpdateUser(ctx, me.ID, func(u *store.User) error {
		if in.Email != nil {
			u.Email, u.VerifiedEmail = email, proven
		}
		if hash != "" {
			u.PasswordHash = hash
		}
		return nil
	})
	if errors.Is(err, store.ErrConflict) {
		return problem.New(http.StatusConflict, "email_taken", "That address belongs to another account.", "Use another one.")
	}
	if err != nil {
		return fmt.Errorf("change the account: %w", err)
	}
	if hash != "" {
		ended, err := a.Store.RevokeUser(context.WithoutCancel(ctx), me.ID, me.session, a.now())
		if err != nil {
			return fmt.Errorf("end the other login sessions: %w", err)
		}
		a.sockets.end(ended...)
		a.audit(c, u, "password_changed", u.Username, fmt.Sprintf("%d other sessions ended", len(ended)))
	}
	if in.Email != nil {
		a.audit(c, u, "email_changed", u.Username, "")
	}
	c.JSON(http.StatusOK, a.userView(u))
	return nil
}

func keyView(k store.Key) gin.H {
	return gin.H{"id": k.ID, "name": k.Name, "type": k.Type, "fingerprint": k.Fingerprint, "key": k.Key, "createdAt": k.CreatedAt.Std(), "lastUsedAt": k.LastUsedAt.Ptr()}
}

func (a *API) listKeys(c *gin.Context) error {
	keys, err := a.Store.Keys(c.Request.Context(), who(c).ID)
	if err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	views := make([]gin.H, len(keys))
	for i, k := range keys {
		views[i] = keyView(k)
	}
	c.JSON(http.StatusOK, views)
	return nil
}

type addKeyRequest struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

func (a *API) addKey(c *gin.Context) error {
	var in addKeyRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	if len(in.Key) > 16<<10 {
		return problem.Field("key", "is longer than any key")
	}
	parsed, err := auth.ParseKey(in.Key)
	if err != nil {
		return problem.Field("key", "can't be used: %s", err)
	}
	if in.Name == "" {
		in.Name = clip(strings.ToValidUTF8(parsed.Comment, "?"), 64)
	}
	if in.Name == "" {
		in.Name = parsed.Type
	}
	if len([]rune(in.Name)) > 64 || strings.ContainsAny(in.Name, "\r\n\x00") {
		return problem.Field("name", "must be one line of at most 64 characters")
	}
	me, ctx := who(c), c.Request.Context()
	if n, err := a.Store.CountKeys(ctx, me.ID); err != nil {
		return fmt.Errorf("count keys: %w", err)
	} else if n >= maxKeys {
		return problem.New(http.StatusConflict, "too_many_keys", fmt.Sprintf("An account holds at most %d keys.", maxKeys), "Remove one that you no longer use.")
	}
	k := store.Key{UserID: me.ID, Name: in.Name, Type: parsed.Type, Fingerprint: parsed.Fingerprint, Key: parsed.Line, CreatedAt: store.At(a.now())}
	if err := a.Store.AddKey(ctx, &k); errors.Is(err, store.ErrConflict) {
		return problem.New(http.StatusConflict, "key_exists", "You have that key already.", "Nothing needs to be done.")
	} else if err != nil {
		return fmt.Errorf("insert the key: %w", err)
	}
	a.audit(c, me.User, "key_added", k.Fingerprint, k.Name)
	c.JSON(http.StatusCreated, keyView(k))
	return nil
}

func (a *API) deleteKey(c *gin.Context) error {
	id, err := numeric(c, "key")
	if err != nil {
		return err
	}
	me := who(c)
	if err := a.Store.DeleteKey(c.Request.Context(), me.ID, id); errors.Is(err, store.ErrNotFound) {
		return problem.NotFound("key")
	} else if err != nil {
		return fmt.Errorf("remove the key: %w", err)
	}
	a.audit(c, me.User, "key_removed", fmt.Sprint(id), "")
	c.Status(http.StatusNoContent)
	c.Writer.WriteHeaderNow()
	return nil
}

type doorPasswordRequest struct {
	Username   string `json:"username"`
	Password   string `json:"password"`
	RemoteAddr string `json:"remoteAddr"`
}

func (a *API) doorPassword(c *gin.Context) error {
	var in doorPasswordRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	u, err := a.checkPassword(c, in.Username, in.Password, cleanAddress(in.RemoteAddr))
	if err != nil {
		return err
	}
	return a.letIn(c, u, in.RemoteAddr, "by password")
}

type doorKeyRequest struct {
	Username   string `json:"username"`
	PublicKey  string `json:"publicKey"`
	RemoteAddr string `json:"remoteAddr"`
}

func (a *API) doorKey(c *gin.Context) error {
	var in doorKeyRequest
	if err := bind(c, &in, false); err != nil {
		return err
	}
	if in.Username == "" || len(in.Username) > 256 {
		return problem.Field("username", "must have 1 to 256 characters")
	}
	byAddress := auth.AddressKey(cleanAddress(in.RemoteAddr))
	if err := a.limit(a.doorKeys, byAddress); err != nil { // successes count too: a public key is no secret
		return err
	}
	refused := unauthenticated("wrong_credentials", "No account of that name has that key.", "Add the key in the panel, or log in with the password.")
	parsed, err := auth.ParseKey(in.PublicKey)
	if err != nil {
		return refused // a client tries all the keys it has
	}
	u, _, err := a.Store.UseKey(c.Request.Context(), strings.ToLower(in.Username), parsed.Fingerprint, a.now())
	if errors.Is(err, store.ErrNotFound) {
		return refused
	}
	if err != nil {
		return fmt.Errorf("look for the key: %w", err)
	}
	if u.Disabled {
		return refused
	}
	return a.letIn(c, u, in.RemoteAddr, parsed.Fingerprint)
}

func (a *API) letIn(c *gin.Context, u store.User, remote, how string) error {
	a.audit(c, u, "ssh_login", cleanAddress(remote), how)
	session, refresh, err := a.begin(c, u)
	if err != nil {
		return err
	}
	return a.answer(c, http.StatusOK, u, session, refresh)
}
