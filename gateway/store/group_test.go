package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gorm.io/gorm"
)

// crowd holds the one writer, lets writes gather, and returns their errors in order, with how often each ran. ids are rows to
// insert; before is called when all wait.
func crowd(t *testing.T, s *Store, ids []string, fn func(i int, db *gorm.DB) error, ctx func(i int) context.Context, before func()) (errs []error, ran []int) {
	t.Helper()
	held, free := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.tx(context.Background(), func(*gorm.DB) error { close(held); <-free; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-held
	errs, ran = make([]error, len(ids)), make([]int, len(ids))
	for i, id := range ids {
		wg.Go(func() {
			errs[i] = s.tx(ctx(i), func(db *gorm.DB) error {
				ran[i]++
				if err := db.Create(&Mark{Name: id}).Error; err != nil {
					return err
				}
				return fn(i, db)
			})
		})
		for waiting := 0; waiting <= i; { // each in its turn
			s.writer.mu.Lock()
			waiting = len(s.writer.waiting)
			s.writer.mu.Unlock()
		}
	}
	before()
	close(free)
	wg.Wait()
	return errs, ran
}

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(context.Background(), "sqlite", filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func marks(t *testing.T, s *Store) map[string]bool {
	t.Helper()
	var list []Mark
	if err := s.db.Find(&list).Error; err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range list {
		names[m.Name] = true
	}
	return names
}

func background(int) context.Context { return context.Background() }

func names(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprint("m", i)
	}
	return list
}

func TestThoseWhoWaitShareATransaction(t *testing.T) {
	s := open(t)
	conns := map[string]int{} // a transaction each
	errs, ran := crowd(t, s, names(10), func(i int, db *gorm.DB) error {
		conns[fmt.Sprintf("%p", db.Statement.ConnPool)]++
		return nil
	}, background, func() {})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, n := range ran {
		if n != 1 {
			t.Errorf("write %d ran %d times", i, n)
		}
	}
	if len(conns) != 1 || len(marks(t, s)) != 10 {
		t.Errorf("%d transactions, rows %v", len(conns), marks(t, s))
	}
}

// Who is refused takes nobody along, and what it did is undone.
func TestARefusedWriteIsItsOwn(t *testing.T) {
	s := open(t)
	errs, _ := crowd(t, s, names(6), func(i int, _ *gorm.DB) error {
		switch i {
		case 1:
			return ErrAllowance
		case 4:
			panic("oh")
		}
		return nil
	}, background, func() {})
	rows := marks(t, s)
	for i, err := range errs {
		if refused := i == 1 || i == 4; (err != nil) != refused || rows[fmt.Sprint("m", i)] == refused {
			t.Errorf("write %d: %v, there: %t", i, err, rows[fmt.Sprint("m", i)])
		}
	}
	if !errors.Is(errs[1], ErrAllowance) {
		t.Error(errs[1])
	}
}

// Who goes while it waits has written nothing, and who is written hears so.
func TestWhoGoesIsNotWritten(t *testing.T) {
	s := open(t)
	gone, cancel := context.WithCancel(context.Background())
	left := make(chan struct{})
	errs, ran := crowd(t, s, names(3), func(int, *gorm.DB) error { return nil }, func(i int) context.Context {
		if i != 1 {
			return context.Background()
		}
		context.AfterFunc(gone, func() { close(left) })
		return gone
	}, func() {
		cancel()
		<-left
		for abandoned := false; !abandoned; { // seen by the one that waits, too
			s.writer.mu.Lock()
			abandoned = s.writer.waiting[1].fn == nil
			s.writer.mu.Unlock()
		}
	})
	if rows := marks(t, s); errs[0] != nil || errs[2] != nil || !errors.Is(errs[1], context.Canceled) || ran[1] != 0 || rows["m1"] || !rows["m2"] {
		t.Error(errs, ran, rows)
	}
}

// unwilling begins no transaction, as SQLite while another process holds its lock.
type unwilling struct {
	gorm.ConnPool
	asked int
}

func (u *unwilling) BeginTx(context.Context, *sql.TxOptions) (gorm.ConnPool, error) {
	u.asked++
	return nil, errors.New("locked")
}

// Where no transaction can begin, those who share one give up together, and do not each wait for the next.
func TestALockedDatabaseIsWaitedForOnce(t *testing.T) {
	s := open(t)
	pool := &unwilling{ConnPool: s.db.Statement.ConnPool}
	errs, ran := crowd(t, s, names(6), func(int, *gorm.DB) error { return nil }, background, func() {
		db := s.db.WithContext(context.Background())
		db.Statement.ConnPool = pool
		s.writer.db = db
	})
	for i, err := range errs {
		if err == nil || err.Error() != "locked" || ran[i] != 0 {
			t.Errorf("write %d: %v, ran %d times", i, err, ran[i])
		}
	}
	if pool.asked != 1 {
		t.Errorf("the database was asked %d times", pool.asked)
	}
}

// What another process's lock, or a full disk, does to a write is told apart from what is our fault.
func TestALockedDatabaseIsAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	s, err := Open(context.Background(), "sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pool, err := s.db.DB()
	if err != nil {
		t.Fatal(err)
	}
	pool.SetMaxOpenConns(1) // so that this is the one that writes
	if err := s.db.Exec("PRAGMA busy_timeout = 1").Error; err != nil {
		t.Fatal(err)
	}
	mark := func(s *Store, name string) error {
		return s.tx(context.Background(), func(db *gorm.DB) error { return db.Create(&Mark{Name: name}).Error })
	}
	other, err := Open(context.Background(), "sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.tx(context.Background(), func(*gorm.DB) error {
		if err := mark(s, "locked out"); !errors.Is(err, ErrAway) {
			t.Error(err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := mark(s, "after it"); err != nil {
		t.Error(err)
	}
	var pages int
	if err := s.db.Raw("PRAGMA page_count").Scan(&pages).Error; err != nil {
		t.Fatal(err)
	}
	if err := s.db.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", pages)).Error; err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		if err := mark(s, strings.Repeat("x", 100)+fmt.Sprint(i)); err != nil {
			if !errors.Is(err, ErrAway) {
				t.Error(err)
			}
			return
		}
	}
}
