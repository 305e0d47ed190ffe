package rootfs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// A remoteImage is an image in a registry.
type remoteImage struct {
	s        *Store
	ref      name.Reference
	base     *http.Transport
	client   *http.Client // for blobs
	manifest *v1.Manifest
}

func (s *Store) openRegistry(ctx context.Context, ref name.Reference, insecure bool) (origin, error) {
	if insecure {
		var err error
		if ref, err = name.ParseReference(ref.Name(), name.WeakValidation, name.Insecure); err != nil {
			return nil, err
		}
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.DisableCompression = true
	base.MaxIdleConnsPerHost = cap(s.slots)
	base.ResponseHeaderTimeout = netStall
	base.ReadBufferSize = 64 << 10
	return &remoteImage{s: s, ref: ref, base: base}, nil
}

func (r *remoteImage) close() { r.base.CloseIdleConnections() }

func (r *remoteImage) head(ctx context.Context) (string, error) {
	opts := []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(r.base),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 2.5, Jitter: 0.1, Steps: 4}),
	}
	ref := r.ref
	for range maxNesting {
		desc, err := remote.Get(ref, opts...)
		if err != nil {
			return "", registryError(err)
		}
		if len(desc.Manifest) > maxManifest {
			return "", fmt.Errorf("manifest of %d bytes; %d are the limit", len(desc.Manifest), maxManifest)
		}
		if !desc.MediaType.IsIndex() {
			if r.manifest, err = parseManifest(desc.Manifest); err != nil {
				return "", err
			}
			return desc.Digest.String(), nil
		}
		idx, err := parseIndex(desc.Manifest)
		if err != nil {
			return "", err
		}
		choice, err := pickPlatform(idx)
		if err != nil {
			return "", err
		}
		ref = r.ref.Context().Digest(choice.Digest.String())
	}
	return "", fmt.Errorf("indexes are nested more than %d deep", maxNesting)
}

func (r *remoteImage) describe(ctx context.Context) (*v1.ConfigFile, []layerRef, error) {
	repo := r.ref.Context()
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
	if err != nil {
		return nil, nil, fmt.Errorf("find credentials for %s: %w", repo.RegistryStr(), err)
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, r.base, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, nil, registryError(err)
	}
	r.client = &http.Client{Transport: rt}
	var buf bytes.Buffer
	b, err := r.open(ctx, layerRef{digest: r.manifest.Config.Digest.String(), size: r.manifest.Config.Size}, func(int64) {})
	if err == nil {
		_, err = io.Copy(&buf, b)
		if err == nil || errors.Is(err, errBlob) {
			b.discard()
		}
		b.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("image configuration: %w", err)
	}
	config, err := parseConfig(buf.Bytes(), len(r.manifest.Layers))
	if err != nil {
		return nil, nil, err
	}
	return config, layerRefs(r.manifest, config), nil
}

func (r *remoteImage) open(ctx context.Context, ref layerRef, progress func(int64)) (blob, error) {
	repo := r.ref.Context()
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", repo.Scheme(), repo.RegistryStr(), repo.RepositoryStr(), ref.digest)
	return r.s.openBlob(ctx, r.client, url, ref, progress)
}

// netError marks an error of the transport as one that may pass, unless it is about trust.
func netError(err error) error {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var cert *tls.CertificateVerificationError
	if errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &cert) || strings.Contains(err.Error(), "server gave HTTP response") {
		return registryError(err)
	}
	return fmt.Errorf("%w: %w", errNetwork, err)
}

// registryError adds what to do about an error.
func registryError(err error) error {
	var terr *transport.Error
	if errors.As(err, &terr) {
		switch terr.StatusCode {
		case http.StatusNotFound:
			return fmt.Errorf("the registry has no such image: check name and tag: %w", err)
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("the registry lets nobody in with these credentials: log in with docker login, or check the name: %w", err)
		}
		return err
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return fmt.Errorf("the registry speaks plain HTTP, which has to be allowed explicitly (insecure): %w", err)
	}
	return err
}
