// Package lookup finds a command along PATH and lines in /etc/passwd and the like: what both init and those who do its work
// beforehand need, without the weight of packages that do more.
package lookup

// UsualPath is PATH where an environment has none.
const UsualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Variable looks a variable up in an environment.
func Variable(env []string, name string) (string, bool) {
	for _, v := range env {
		if len(v) > len(name) && v[len(name)] == '=' && v[:len(name)] == name {
			return v[len(name)+1:], true
		}
	}
	return "", false
}

// maxCandidates bounds how many directories of PATH are searched.
const maxCandidates = 128

// Candidates lists the paths to try for a command, in order.
func Candidates(command string, env []string) (paths []string) {
	for i := range len(command) {
		if command[i] == '/' {
			return []string{command}
		}
	}
	path, _ := Variable(env, "PATH")
	for _, dir := range Split([]byte(path), ':') {
		if len(dir) == 0 {
			dir = []byte(".")
		}
		if paths = append(paths, string(dir)+"/"+command); len(paths) == maxCandidates {
			break
		}
	}
	return paths
}

// FindLine returns the first line of exactly n fields that fits.
func FindLine(file []byte, fits func([][]byte) bool, n int) [][]byte {
	for len(file) > 0 {
		end := 0
		for end < len(file) && file[end] != '\n' {
			end++
		}
		if fields := Split(file[:end], ':'); len(fields) == n && len(fields[0]) > 0 && fits(fields) {
			return fields
		}
		file = file[min(end+1, len(file)):]
	}
	return nil
}

// Split is bytes.Split for one byte.
func Split(b []byte, sep byte) (parts [][]byte) {
	start := 0
	for i := range b {
		if b[i] == sep {
			parts = append(parts, b[start:i])
			start = i + 1
		}
	}
	return append(parts, b[start:])
}

// NumberIs says whether a field is an id, and the one wanted.
func NumberIs(fields [][]byte, i int, want uint32) bool {
	n, ok := ParseID(string(fields[i]))
	return ok && n == want
}

// IsNumber says whether s is made of digits.
func IsNumber(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// ParseID reads a uid or gid: digits only, and neither -1 nor above, which mean "leave as it is" to the kernel.
func ParseID(s string) (uint32, bool) {
	if !IsNumber(s) || len(s) > 10 {
		return 0, false
	}
	var n uint64
	for i := 0; i < len(s); i++ {
		n = n*10 + uint64(s[i]-'0')
	}
	return uint32(n), n < 1<<32-1
}

// Home is a user's home by the text of a passwd file; "/" where that has none.
func Home(passwd []byte, uid uint32) string {
	line := FindLine(passwd, func(f [][]byte) bool { return NumberIs(f, 2, uid) }, 7)
	if line == nil || len(line[5]) == 0 || line[5][0] != '/' {
		return "/"
	}
	return string(line[5])
}
