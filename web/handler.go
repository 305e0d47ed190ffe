package web

import (
	"encoding/json"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"
)

// maxBody bounds a request's body, bytes: the API takes small JSON only.
const maxBody = 8 << 20

// plainHost is a Host header that can be quoted in a policy.
var plainHost = regexp.MustCompile(`^([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$`)

// NewHandler returns the panel and the way to the API as one handler. gateway is the gateway's base URL,
// doorKey the hex of the installation's "door" secret.
func NewHandler(gateway *url.URL, doorKey, version string, log *slog.Logger) (http.Handler, error) {
	dir, err := fs.Sub(dist, "dist")
	if err != nil {
		return nil, err
	}
	return newHandler(dir, gateway, doorKey, version, log)
}

func newHandler(dir fs.FS, gateway *url.URL, doorKey, version string, log *slog.Logger) (http.Handler, error) {
	files, err := newPanel(dir)
	if err != nil {
		return nil, err
	}
	proxy := newProxy(gateway, doorKey, log)
	route := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := r.URL.Path
		switch {
		case p == "/healthz":
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			_ = json.NewEncoder(w).Encode(map[string]string{"status": "ok", "version": version})
		case proxyable(p):
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			proxy.ServeHTTP(w, r)
		case reserved(p):
			writeError(w, http.StatusNotFound, "not_found", "There is nothing at this address.", "The API lives under /api/v1; /api/v1/openapi.json describes it.")
		default:
			files.ServeHTTP(w, r)
		}
	})
	return recovered(log, secured(route)), nil
}

// reserved paths belong to the API and never show the panel, however they are written.
func reserved(p string) bool {
	first, _, _ := strings.Cut(strings.TrimLeft(p, "/\\."), "/")
	return strings.EqualFold(first, "api") || strings.EqualFold(first, "internal") || strings.Contains(p, "..") || strings.Contains(p, "//")
}

// secured sets the headers that tell a browser what this site may do.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// 'self' does not cover websockets in every browser, so this very host is named; no other one is.
		connect := "'self'"
		if plainHost.MatchString(r.Host) {
			connect += " ws://" + r.Host + " wss://" + r.Host
		}
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "+
			"img-src 'self' data: blob:; font-src 'self' data:; connect-src "+connect+
			"; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()")
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		next.ServeHTTP(w, r)
	})
}

// recovered turns a handler's panic into an answer and a line in the log.
func recovered(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { // how ReverseProxy ends an answer that broke half-way
				panic(v)
			}
			log.Error("a handler panicked", "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			writeError(w, http.StatusInternalServerError, "internal", "Something broke while answering.", "Try again; if it happens again, tell the operator what you did.")
		}()
		next.ServeHTTP(w, r)
	})
}
