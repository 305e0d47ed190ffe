package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
)

// notBuilt is served where the panel would be when the binary was built without it.
const notBuilt = `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Learnos</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem}</style>
<h1>The panel is not in this build</h1>
<p>This <code>web</code> was compiled before the browser panel was. Run <code>make panel</code> in the
source tree (it needs Node.js), build again, and restart. The API under <code>/api/v1</code> and the SSH door work all the same.</p>
</html>
`

// asset is one file of the panel, in every encoding that it is offered in.
type asset struct {
	body        []byte
	contentType string
	etag        string
	br          []byte // made by the panel's build; nil: none
	gzipOnce    sync.Once
	gz          []byte // from the build, else made at the first request that wants it
}

// gzipped returns the compressed body, or nil where compressing does not pay.
func (a *asset) gzipped() []byte {
	a.gzipOnce.Do(func() {
		if a.gz != nil || len(a.body) < 1024 || !compressible(a.contentType) {
			return
		}
		var buf bytes.Buffer
		zw, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
		if err != nil {
			return
		}
		if _, err := zw.Write(a.body); err != nil || zw.Close() != nil || buf.Len() >= len(a.body) {
			return
		}
		a.gz = buf.Bytes()
	})
	return a.gz
}

func compressible(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	return strings.HasPrefix(t, "text/") || t == "image/svg+xml" || strings.HasSuffix(t, "json") || strings.HasSuffix(t, "javascript") || t == "application/wasm"
}

// panel serves a single-page application out of a file system that never changes while it is served.
type panel struct {
	assets map[string]*asset // by URL path without the leading slash
	index  *asset
}

// newPanel reads every file of dir into memory: the panel is small, and so no request touches a disk.
func newPanel(dir fs.FS) (*panel, error) {
	p := &panel{assets: map[string]*asset{}}
	sidecars := map[string][]byte{}
	err := fs.WalkDir(dir, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(path.Base(name), ".") {
			return err
		}
		body, err := fs.ReadFile(dir, name)
		if err != nil {
			return err
		}
		if ext := path.Ext(name); ext == ".br" || ext == ".gz" {
			sidecars[name] = body
			return nil
		}
		p.assets[name] = newAsset(name, body)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the panel's files: %w", err)
	}
	for name, body := range sidecars {
		a := p.assets[strings.TrimSuffix(name, path.Ext(name))]
		switch {
		case a == nil:
			p.assets[name] = newAsset(name, body)
		case path.Ext(name) == ".br":
			a.br = body
		default:
			a.gz = body
		}
	}
	p.index = p.assets["index.html"]
	delete(p.assets, "index.html")
	if p.index == nil {
		p.index = newAsset("index.html", []byte(notBuilt))
	}
	return p, nil
}

func newAsset(name string, body []byte) *asset {
	ct := mime.TypeByExtension(path.Ext(name))
	switch path.Ext(name) { // the machine's own mime table must not decide how the panel runs
	case ".js", ".mjs":
		ct = "text/javascript; charset=utf-8"
	case ".css":
		ct = "text/css; charset=utf-8"
	case ".html":
		ct = "text/html; charset=utf-8"
	case ".svg":
		ct = "image/svg+xml"
	case ".json", ".map":
		ct = "application/json"
	case ".webmanifest":
		ct = "application/manifest+json"
	case ".woff2":
		ct = "font/woff2"
	case ".wasm":
		ct = "application/wasm"
	}
	if ct == "" {
		ct = "application/octet-stream"
	}
	sum := sha256.Sum256(body)
	return &asset{body: body, contentType: ct, etag: hex.EncodeToString(sum[:12])}
}

// ServeHTTP answers with a file, or with the panel's index for a path that the panel itself routes. A path
// that looks like a file and is none gets 404: an index served as a script only hides the mistake.
func (p *panel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "method_not_allowed", "The panel's files can only be read.", "Send changes to /api/v1.")
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	a, cache := p.assets[name], "no-cache"
	switch {
	case a != nil && strings.HasPrefix(name, "assets/"):
		cache = "public, max-age=31536000, immutable" // the build puts a hash of the content into these names
	case a != nil:
	case strings.HasPrefix(name, "assets/") || (path.Ext(name) != "" && name != "index.html"):
		http.NotFound(w, r)
		return
	default:
		a = p.index
	}
	body, etag := a.body, a.etag
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Cache-Control", cache)
	h.Add("Vary", "Accept-Encoding")
	accepted := r.Header.Get("Accept-Encoding")
	if a.br != nil && acceptsEncoding(accepted, "br") {
		h.Set("Content-Encoding", "br")
		body, etag = a.br, etag+"-br"
	} else if acceptsEncoding(accepted, "gzip") {
		if gz := a.gzipped(); gz != nil {
			h.Set("Content-Encoding", "gzip")
			body, etag = gz, etag+"-gz"
		}
	}
	etag = `"` + etag + `"`
	h.Set("ETag", etag)
	if etagMatches(r.Header.Get("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(body)
	}
}

// acceptsEncoding reports whether an Accept-Encoding header (RFC 9110 section 12.5.3) allows coding.
func acceptsEncoding(header, coding string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		if !strings.EqualFold(strings.TrimSpace(name), coding) {
			continue
		}
		q, found := strings.CutPrefix(strings.ReplaceAll(strings.ToLower(params), " ", ""), "q=")
		if !found {
			return true
		}
		v, err := strconv.ParseFloat(q, 64)
		return err == nil && v > 0
	}
	return false
}

// etagMatches compares weakly, as If-None-Match asks (RFC 9110 section 13.1.2).
func etagMatches(header, etag string) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimPrefix(strings.TrimSpace(part), "W/")
		if part == etag || part == "*" {
			return true
		}
	}
	return false
}
