package web

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"
)

// apiPrefix is the only part of the gateway that the world may reach.
const apiPrefix = "/api/v1/"

// ownHeaders are set by this server on every answer; the gateway's copies are dropped so that none appears twice.
var ownHeaders = []string{"Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy",
	"Permissions-Policy", "Cross-Origin-Opener-Policy", "Strict-Transport-Security"}

// errorBody is the API's error shape.
type errorBody struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint"`
	} `json:"error"`
}

// writeError answers in the API's error shape.
func writeError(w http.ResponseWriter, status int, code, message, hint string) {
	var b errorBody
	b.Error.Code, b.Error.Message, b.Error.Hint = code, message, hint
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(b)
}

// newProxy passes requests to the gateway as they came, save for the headers that say who sent them: those
// are ours alone. doorKey proves to the gateway that they are.
func newProxy(gateway *url.URL, doorKey string, log *slog.Logger) http.Handler {
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   256,
		IdleConnTimeout:       60 * time.Second,
		TLSHandshakeTimeout:   5 * time.Second,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // the client's own Accept-Encoding decides
	}
	return &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // streams reach the reader as they are written
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// ReverseProxy drops the client's Forwarded and X-Forwarded-* before it calls Rewrite.
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(gateway)
			p.Out.Host = p.In.Host // the gateway compares it with Origin
			p.Out.Header.Del("X-Real-Ip")
			p.Out.Header.Set("X-Forwarded-For", remoteIP(p.In.RemoteAddr))
			p.Out.Header.Set("X-Forwarded-Host", p.In.Host)
			p.Out.Header.Set("X-Forwarded-Proto", scheme(p.In))
			p.Out.Header.Set("X-Learnos-Door", doorKey)
		},
		ModifyResponse: func(r *http.Response) error {
			for _, h := range ownHeaders {
				r.Header.Del(h)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, context.Canceled) {
				return // the client went away; nobody is left to be told
			}
			log.Warn("the gateway did not answer", "path", r.URL.Path, "err", err)
			w.Header().Set("Retry-After", "2")
			writeError(w, http.StatusBadGateway, "gateway_away", "The Learnos gateway does not answer.",
				"It may be restarting: this page tries again by itself. If it lasts, look at the gateway's log.")
		},
	}
}

// proxyable says whether a request path may go to the gateway. Only plain paths below /api/v1/ do: one that
// another server might read differently (dot segments, empty segments, backslashes) goes nowhere, so no spelling
// of /internal gets through.
func proxyable(p string) bool {
	if !strings.HasPrefix(p, apiPrefix) || strings.ContainsAny(p, "\\\x00") {
		return false
	}
	rest := strings.TrimSuffix(p[1:], "/")
	for seg := range strings.SplitSeq(rest, "/") {
		if seg == "" || seg == "." || seg == ".." {
			return false
		}
	}
	return true
}

func remoteIP(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	host, _, _ = strings.Cut(host, "%") // a zone is this machine's business
	return host
}

func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}
