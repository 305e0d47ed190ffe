package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
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
