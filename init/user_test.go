package main

import (
	"strings"
	"testing"

	"github.com/learnos/learnos/internal/initproto/lookup"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:100:U:/home/u:/bin/sh\nbroken:x:oops:1::/:/bin/sh\nminus:x:-1:-1::/:/bin/sh\n" +
		"max:x:4294967295:0::/:/bin/sh\nshort:x:5\n::7:7::/:\n1000:x:77:77:digits:/d:/bin/sh\nrel:x:8:8::home:/bin/sh\n"
	group = "root:x:0:\nwheel:x:10:root,user\nstaff:x:50:user,\nbad:x:no:user\n12:x:99:user\n"
)

func TestResolveUser(t *testing.T) {
	for user, want := range map[string]struct {
		uid, gid uint32
		groups   int
		home     string
	}{
		"":            {0, 0, 1, "/root"},
		"root":        {0, 0, 1, "/root"},
		"user":        {1000, 100, 3, "/home/u"},
		"1000":        {1000, 100, 3, "/home/u"}, // digits are a number, whatever somebody is called
		"01000":       {1000, 100, 3, "/home/u"},
		"user:wheel":  {1000, 10, 0, "/home/u"},
		"user:12":     {1000, 12, 0, "/home/u"}, // here, too
		"5000":        {5000, 0, 0, "/"},
		"5000:6000":   {5000, 6000, 0, "/"},
		"4294967294":  {4294967294, 0, 0, "/"},
		"rel":         {8, 8, 0, "/"},
		"0:0":         {0, 0, 0, "/root"},
		"root:staff":  {0, 50, 0, "/root"},
		"0000000000":  {0, 0, 1, "/root"},
		"user:000050": {1000, 50, 0, "/home/u"},
	} {
		id, err := resolveUser(user, []byte(passwd), []byte(group))
		if err != nil || id.uid != want.uid || id.gid != want.gid || len(id.groups) != want.groups || id.home != want.home {
			t.Errorf("%q: %+v %v, want %+v", user, id, err, want)
		}
	}
	for _, user := range []string{":", ":0", "root:", "user:user:user", "+1", "-1", " 0", "0 ", "0x0", "1e3", "4294967295", "4294967296", "99999999999",
		"0:-1", "0:4294967295", "0:+0", "0: 0", "none", "broken", "minus", "max", "short", "user:bad", "user:none", "a b", "a/b", "ü\x00", "\n", "root\n"} {
		if id, err := resolveUser(user, []byte(passwd), []byte(group)); err == nil {
			t.Errorf("%q became %+v", user, id)
		}
	}
}

// FuzzResolveUser: whatever an image's files and a caller say, an identity is in range or there is an error.
func FuzzResolveUser(f *testing.F) {
	f.Add("user:wheel", []byte(passwd), []byte(group))
	f.Add("1000", []byte(passwd), []byte(group))
	f.Fuzz(func(t *testing.T, user string, passwd, group []byte) {
		id, err := resolveUser(user, passwd, group)
		if err != nil {
			return
		}
		if id.uid == ^uint32(0) || id.gid == ^uint32(0) || len(id.groups) > maxGroups || !strings.HasPrefix(id.home, "/") {
			t.Fatalf("%q: %+v", user, id)
		}
		if user == "" && (id.uid != 0 || id.gid != 0) {
			t.Fatalf("the default user became %+v", id)
		}
	})
}

func TestParent(t *testing.T) {
	for path, want := range map[string][2]string{"/a": {"/", "a"}, "/a/b": {"/a", "b"}, "/a/b//": {"/a", "b"}, "/": {"/", ""}, "a": {"/", "a"}} {
		if dir, name := parent(path); dir != want[0] || name != want[1] {
			t.Errorf("%s: %q %q", path, dir, name)
		}
	}
}

func TestCandidates(t *testing.T) {
	if got := lookup.Candidates("x", []string{"PATH=/a:/b::c"}); strings.Join(got, " ") != "/a/x /b/x ./x c/x" {
		t.Errorf("%q", got)
	}
	if got := lookup.Candidates("./x", []string{"PATH=/a"}); len(got) != 1 || got[0] != "./x" {
		t.Errorf("%q", got)
	}
}
