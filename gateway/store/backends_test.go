package store_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"database/sql"

	_ "github.com/go-sql-driver/mysql"

	"github.com/learnos/learnos/gateway/store"
)

// mariadb is one real server for all tests of this package; every test gets a database of its own in it.
var mariadb struct {
	sync.Once
	addr string
	err  error
	stop func()
	n    int
}

func TestMain(m *testing.M) {
	code := m.Run()
	if mariadb.stop != nil {
		mariadb.stop()
	}
	os.Exit(code)
}

func startMariaDB() (addr string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "learnos-mariadb-")
	if err != nil {
		return "", nil, err
	}
	data := filepath.Join(dir, "data")
	out, err := exec.Command("mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+data,
		"--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput()
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("mariadb-install-db: %w\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return "", nil, err
	}
	defer log.Close()
	cmd := exec.Command("/usr/sbin/mariadbd", "--no-defaults", "--user=root", "--datadir="+data,
		"--socket="+filepath.Join(dir, "s"), "--bind-address=127.0.0.1", fmt.Sprintf("--port=%d", port), "--pid-file="+filepath.Join(dir, "pid"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	}
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	db, err := sql.Open("mysql", "root@tcp("+addr+")/mysql")
	if err != nil {
		stop()
		return "", nil, err
	}
	defer db.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err = db.Ping(); err == nil {
			return addr, stop, nil
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			stop()
			return "", nil, fmt.Errorf("MariaDB does not answer: %w\n%s", err, text)
		}
	}
}

// each runs the test on both backends.
func each(t *testing.T, test func(t *testing.T, s *store.Store)) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, open(t, "sqlite", filepath.Join(t.TempDir(), "dir with ? and #", "learnos.db")))
	})
	t.Run("mariadb", func(t *testing.T) {
		t.Parallel()
		test(t, open(t, "mysql", mariaDSN(t)))
	})
}

func mariaDSN(t *testing.T) string {
	t.Helper()
	mariadb.Do(func() { mariadb.addr, mariadb.stop, mariadb.err = startMariaDB() })
	if mariadb.err != nil {
		t.Fatal(mariadb.err)
	}
	db, err := sql.Open("mysql", "root@tcp("+mariadb.addr+")/mysql")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	name := "t_" + strings.ToLower(strings.NewReplacer("/", "_", "#", "_").Replace(t.Name()))
	if _, err := db.Exec("CREATE DATABASE `" + name + "`"); err != nil {
		t.Fatal(err)
	}
	return "root@tcp(" + mariadb.addr + ")/" + name
}

func open(t *testing.T, driver, dsn string) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
