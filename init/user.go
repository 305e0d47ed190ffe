package main

import (
	"errors"

	"golang.org/x/sys/unix"
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
		if line := findLine(passwd, func(f [][]byte) bool { return numberIs(f, 2, 0) }, 7); line != nil {
			id.home = string(line[5])
		}
	case isNumber(name):
		n, ok := parseID(name)
		if !ok {
			return id, errors.New("user " + strconvQuote(user) + ": the uid is out of range")
		}
		id.uid = n
		line := findLine(passwd, func(f [][]byte) bool { return numberIs(f, 2, n) }, 7)
		who = ""
		if line != nil {
			who = string(line[0])
			id.home = string(line[5])
			if gid, ok := parseID(string(line[3])); ok {
				id.gid = gid
			}
		}
	default:
		if !isName(name) {
			return id, errors.New("user " + strconvQuote(user) + " is neither a number nor a name")
		}
		line := findLine(passwd, func(f [][]byte) bool { return string(f[0]) == name }, 7)
		if line == nil {
			return id, errors.New("user " + strconvQuote(name) + " is not in the environment's /etc/passwd")
		}
		uid, ok1 := parseID(string(line[2]))
		gid, ok2 := parseID(string(line[3]))
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
	if isNumber(name) {
		n, ok := parseID(name)
		if !ok {
			return 0, errors.New("user " + strconvQuote(user) + ": the gid is out of range")
		}
		return n, nil
	}
	if !isName(name) {
		return 0, errors.New("user " + strconvQuote(user) + ": the group is neither a number nor a name")
	}
	line := findLine(group, func(f [][]byte) bool { return string(f[0]) == name }, 4)
	if line == nil {
		return 0, errors.New("group " + strconvQuote(name) + " is not in the environment's /etc/group")
	}
	gid, ok := parseID(string(line[2]))
	if !ok {
		return 0, errors.New("group " + strconvQuote(name) + " has a malformed line in the environment's /etc/group")
	}
	return gid, nil
}

// maxGroups bounds the supplementary groups of a session.
const maxGroups = 64

// memberships lists the groups that name somebody as a member.
func memberships(name string, primary uint32, group []byte) (gids []uint32) {
	findLine(group, func(f [][]byte) bool {
		gid, ok := parseID(string(f[2]))
		if !ok || gid == primary || len(gids) == maxGroups {
			return false
		}
		for _, member := range split(f[3], ',') {
			if string(member) == name {
				gids = append(gids, gid)
				break
			}
		}
		return false
	}, 4)
	return gids
}

// findLine returns the first line of exactly n fields that fits.
func findLine(file []byte, fits func([][]byte) bool, n int) [][]byte {
	for len(file) > 0 {
		end := 0
		for end < len(file) && file[end] != '\n' {
			end++
		}
		if fields := split(file[:end], ':'); len(fields) == n && len(fields[0]) > 0 && fits(fields) {
			return fields
		}
		file = file[min(end+1, len(file)):]
	}
	return nil
}

func split(b []byte, sep byte) (parts [][]byte) {
	start := 0
	for i := range b {
		if b[i] == sep {
			parts = append(parts, b[start:i])
			start = i + 1
		}
	}
	return append(parts, b[start:])
}

func numberIs(fields [][]byte, i int, want uint32) bool {
	n, ok := parseID(string(fields[i]))
	return ok && n == want
}

func isNumber(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// parseID reads a uid or gid: digits only, and neither -1 nor above, which mean "leave as it is" to the kernel.
func parseID(s string) (uint32, bool) {
	if !isNumber(s) || len(s) > 10 {
		return 0, false
	}
	var n uint64
	for i := 0; i < len(s); i++ {
		n = n*10 + uint64(s[i]-'0')
	}
	return uint32(n), n < 1<<32-1
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
