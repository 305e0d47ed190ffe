package queue_test

import (
	"net"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/learnos/learnos/internal/config"
	"github.com/learnos/learnos/internal/queue"
)

// proxy stands between a client and etcd and can be cut like a cable: nothing passes, nobody is told.
type proxy struct {
	ln     net.Listener
	target string

	mu    sync.Mutex
	cond  sync.Cond
	isCut bool // both ways
	mute  bool // only from etcd
	conns []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{ln: ln, target: target}
	p.cond.L = &p.mu
	go p.accept()
	t.Cleanup(func() {
		p.restore()
		ln.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.conns {
			c.Close()
		}
	})
	return p
}

func (p *proxy) client(t *testing.T) *clientv3.Client {
	cli, err := queue.Dial(config.Etcd{Addresses: []string{p.ln.Addr().String()}})
	must(t, err)
	t.Cleanup(func() { cli.Close() })
	return cli
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = true
}

// cutAnswers lets requests pass, but no answers.
func (p *proxy) cutAnswers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = true
}

func (p *proxy) restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut, p.mute = false, false
	p.cond.Broadcast()
}

func (p *proxy) accept() {
	for {
		a, err := p.ln.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", p.target)
		if err != nil {
			a.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, a, b)
		p.mu.Unlock()
		go p.pipe(a, b, true)
		go p.pipe(b, a, false)
	}
}

func (p *proxy) pipe(dst, src net.Conn, answers bool) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		p.mu.Lock()
		for p.isCut || answers && p.mute {
			p.cond.Wait()
		}
		p.mu.Unlock()
		if _, werr := dst.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}
