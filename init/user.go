package main

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/learnos/learnos/internal/initproto/lookup"
)

// identity is who a session runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxDatabase bounds /etc/passwd and /etc/group: whatever an image holds there, we read no more.
const maxDatabase = 4 << 20

// lookupUser resolves a User string against the files inside.
func lookupUser(user string) (identity, error) {
	return resolveUser(user, readInside("/etc/passwd"), readInside("/etc/group"))
}

// readInside reads a small regular file inside; a missing or strange one reads as empty.
func readInside(path string) []byte {
	fd, err := openInside(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	b, _ := readAll(fd, maxDatabase)
	return b
}

// resolveUser reads "", "name", "uid", "uid:gid", "name:group" and so on. It is strict: a part made of digits is a number,
// any other part must be a name of the database, and nothing is guessed from the rest.
func resolveUser(user string, passwd, group []byte) (identity, error) {
	name, groupName, hasGroup := user, "", false
	for i := 0; i < len(user); i++ {
		if user[i] == ':' {
			name, groupName, hasGroup = user[:i], user[i+1:], true
			break
		}
	}
	var id identity
	who := name
	switch {
	case user == "":
		who = "root"
		if line := lookup.FindLine(passwd, func(f [][]byte) bool { return lookup.NumberIs(f, 2, 0) }, 7); line != nil {
			id.home = string(line[5])
		}
	case lookup.IsNumber(name):
		n, ok := lookup.ParseID(name)
		if !ok {
			return id, errors.New("user " + strconvQuote(user) + ": the uid is out of range")
		}
		id.uid = n
		line := lookup.FindLine(passwd, func(f [][]byte) bool { return lookup.NumberIs(f, 2, n) }, 7)
		who = ""
		if line != nil {
			who = string(line[0])
			id.home = string(line[5])
			if gid, ok := lookup.ParseID(string(line[3])); ok {
				id.gid = gid
			}
		}
	default:
		if !isName(name) {
			return id, errors.New("user " + strconvQuote(user) + " is neither a number nor a name")
		}
		line := lookup.FindLine(passwd, func(f [][]byte) bool { return string(f[0]) == name }, 7)
		if line == nil {
			return id, errors.New("user " + strconvQuote(name) + " is not in the environment's /etc/passwd")
		}
		uid, ok1 := lookup.ParseID(string(line[2]))
		gid, ok2 := lookup.ParseID(string(line[3]))
		if !ok1 || !ok2 {
			return id, errors.New("user " + strconvQuote(name) + " has a malformed line in the environment's /etc/passwd")
		}
		id.uid, id.gid, id.home = uid, gid, string(line[5])
	}
	if hasGroup {
		gid, err := resolveGroup(user, groupName, group)
		if err != nil {
			return id, err
		}
		id.gid = gid
	} else if who != "" {
		id.groups = memberships(who, id.gid, group)
	}
	if len(id.home) == 0 || id.home[0] != '/' {
		id.home = "/"
	}
	return id, nil
}

func resolveGroup(user, name string, group []byte) (uint32, error) {
	if lookup.IsNumber(name) {
		n, ok := lookup.ParseID(name)
		if !ok {
			return 0, errors.New("user " + strconvQuote(user) + ": the gid is out of range")
		}
		return n, nil
	}
	if !isName(name) {
		return 0, errors.New("user " + strconvQuote(user) + ": the group is neither a number nor a name")
	}
	line := lookup.FindLine(group, func(f [][]byte) bool { return string(f[0]) == name }, 4)
	if line == nil {
		return 0, errors.New("group " + strconvQuote(name) + " is not in the environment's /etc/group")
	}
	gid, ok := lookup.ParseID(string(line[2]))
	if !ok {
		return 0, errors.New("group " + strconvQuote(name) + " has a malformed line in the environment's /etc/group")
	}
	return gid, nil
}

// maxGroups bounds the supplementary groups of a session.
const maxGroups = 64

// memberships lists the groups that name somebody as a member.
func memberships(name string, primary uint32, group []byte) (gids []uint32) {
	lookup.FindLine(group, func(f [][]byte) bool {
		gid, ok := lookup.ParseID(string(f[2]))
		if !ok || gid == primary || len(gids) == maxGroups {
			return false
		}
		for _, member := range lookup.Split(f[3], ',') {
			if string(member) == name {
				gids = append(gids, gid)
				break
			}
		}
		return false
	}, 4)
	return gids
}

// isName accepts what a passwd file may hold as a name: no separators, no control characters, no leading sign.
func isName(s string) bool {
	if s == "" || len(s) > 256 || s[0] == '-' || s[0] == '+' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] == ':' || s[i] == ',' || s[i] == '/' || s[i] == 0x7f {
			return false
		}
	}
	return true
}
