package initproto

import (
	"reflect"
	"strings"
	"testing"
)

func fullRequest() *Request {
	return &Request{
		Kind: Setup, ID: "x", Signal: -9,
		Session: &Session{ID: "s", Args: []string{"a", ""}, Env: []string{"A=b"}, Cwd: "/", User: "u:g", TTY: true, Cols: 1, Rows: 65535},
		Plan: &Plan{
			FDs: 3, Hostname: "h", Domainname: "d", CgroupNS: true, UserNS: true, OwnDev: true, Loopback: true, RootReadonly: true, RootPropagation: 1 << 18,
			Mounts:  []Mount{{Dest: "/a", FD: -1, FSType: "tmpfs", Source: "s", Options: []string{"k=v"}, AttrSet: 1, Recursive: true, Propagation: 3, Strict: true, File: true, Optional: true, LikeTarget: true, CopyUp: true}},
			Devices: []Device{{Path: "/dev/x", Host: "/dev/y", Mode: 1, Major: 2, Minor: 3, UID: 4, GID: 5}},
			Masked:  []string{"/m"}, Readonly: []string{"/r"}, Sysctl: []Pair{{"k", "v"}}, Rlimits: []Rlimit{{1, 2, ^uint64(0)}},
			Caps: Caps{1, 2, 3, 4, 5}, NoNewPrivs: true, Umask: 0o22, Groups: []uint32{7}, ExecLabelFile: "exec", ExecLabel: "l",
			Seccomp: []byte{1, 2}, SeccompFlags: 8, SeccompOnInit: true, SocketFilter: []byte{3}, NetlinkSockets: 4, Main: &Session{ID: "main"}, LogMax: -1, KeepStdin: true,
		},
	}
}

func fullReply() *Reply {
	return &Reply{Code: Busy, Message: "m", Phase: Running, Infos: []Info{{ID: "i", PID: 7, TTY: true, HasPIDFD: true, FDs: 1,
		Args: []string{"a"}, Exited: true, Status: Status{1, -2, "r"}}}, Status: &Status{3, 4, "why"}}
}

func TestRoundTrip(t *testing.T) {
	b, err := fullRequest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	r, err := DecodeRequest(b)
	if err != nil || !reflect.DeepEqual(r, fullRequest()) {
		t.Errorf("%+v %v", r, err)
	}
	b, err = fullReply().Encode()
	if err != nil {
		t.Fatal(err)
	}
	reply, err := DecodeReply(b)
	if err != nil || !reflect.DeepEqual(reply, fullReply()) {
		t.Errorf("%+v %v", reply, err)
	}
	// Every shorter message is malformed, and none panics.
	for n := range b {
		if _, err := DecodeReply(b[:n]); err == nil {
			t.Errorf("a reply cut to %d bytes was taken", n)
		}
	}
	if _, err := DecodeReply(append(b, 0)); err == nil {
		t.Error("a byte too many was taken")
	}
	b[0]++
	if _, err := DecodeReply(b); err != ErrVersion {
		t.Errorf("%v", err)
	}
}

func TestBounds(t *testing.T) {
	if _, err := (&Request{ID: strings.Repeat("x", maxString+1)}).Encode(); err == nil {
		t.Error("a string beyond the bound was written")
	}
	if _, err := (&Request{Session: &Session{Args: make([]string, maxList+1)}}).Encode(); err == nil {
		t.Error("a list beyond the bound was written")
	}
	// A short message can't ask for a long list.
	b, _ := (&Reply{}).Encode()
	at := len(b) - 1 - 4 // the count of Infos, before the flag of Status
	b[at], b[at+1] = 0xff, 0x0f
	if _, err := DecodeReply(b); err != ErrMalformed {
		t.Errorf("%v", err)
	}
}

// FuzzRequest feeds init's side; what it takes must survive being written and read again.
func FuzzRequest(f *testing.F) {
	b, _ := fullRequest().Encode()
	f.Add(b)
	b, _ = (&Request{Kind: List}).Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRequest(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeRequest(again); err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v %v", back, err)
		}
	})
}

// FuzzReply feeds the runtime's side.
func FuzzReply(f *testing.F) {
	b, _ := fullReply().Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeReply(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeReply(again); err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v %v", back, err)
		}
	})
}
