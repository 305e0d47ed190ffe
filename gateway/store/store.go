// Package store is the gateway's SQL memory: people, login sessions, keys, images, environments with their history,
// and the audit log, on SQLite or MySQL/MariaDB with the same behaviour on both.
//
// Whatever must hold when two requests race (an allowance, a refresh token that works once, the last admin) is
// decided here, inside one transaction. The package hashes no password, knows no queue and checks no permission.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"path/filepath"
	"time"

	gosqlite "github.com/glebarez/go-sqlite"
	"github.com/glebarez/sqlite"
	mysqldriver "github.com/go-sql-driver/mysql"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
	sqlite3 "modernc.org/sqlite/lib"
)

// Errors that callers tell apart with errors.Is.
var (
	ErrNotFound  = errors.New("no such row")
	ErrConflict  = errors.New("exists already")
	ErrAllowance = errors.New("allowance is used up")
	ErrReused    = errors.New("refresh token was used before")
	ErrRevoked   = errors.New("session has ended")
	ErrLastAdmin = errors.New("the last active admin must stay one")
	ErrAway      = errors.New("the database can't be written to") // for now: it is locked, or its disk is full
)

// Store is an open database. It is safe for concurrent use.
type Store struct {
	db *gorm.DB
	// writer is SQLite's one place for writers; nil for MySQL. Waiting here is fair and heeds contexts; SQLite's own busy
	// handler (still there for other processes) is neither.
	writer *writer
}

// Open connects to the database and brings its tables up to date. The driver is "sqlite", with a file's path as
// dsn (made with mode 0600), or "mysql", with a DSN as of github.com/go-sql-driver/mysql.
func Open(ctx context.Context, driver, dsn string) (*Store, error) {
	s := &Store{}
	var dialect gorm.Dialector
	switch driver {
	case "sqlite":
		if err := private(dsn); err != nil {
			return nil, err
		}
		// A WAL lets readers and the writer work side by side. synchronous stays FULL: an accepted create survives
		// a power cut. Transactions take the write lock at once, since a later upgrade can't wait.
		dialect = sqlite.Open("file:" + (&url.URL{Path: dsn}).EscapedPath() +
			"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_txlock=immediate")
	case "mysql":
		cfg, err := mysqldriver.ParseDSN(dsn)
		if err != nil {
			return nil, fmt.Errorf("read gateway.dsn: %w (an example: learnos:secret@tcp(127.0.0.1:3306)/learnos)", err)
		}
		cfg.ClientFoundRows = true // an UPDATE that changes nothing still tells that the row is there
		cfg.ParseTime = true
		if cfg.Timeout == 0 {
			cfg.Timeout = 5 * time.Second
		}
		// Initialize asks the server for its version without a context, so it can't be bounded from here; cfg.Timeout is.
		dialect = mysql.Open(cfg.FormatDSN())
	default:
		return nil, fmt.Errorf("gateway.driver is %q; it must be sqlite or mysql", driver)
	}
	db, err := gorm.Open(dialect, &gorm.Config{
		TranslateError:         true,
		SkipDefaultTransaction: true,
		PrepareStmt:            true, // parsing was a third of a query's time
		Logger:                 logger.New(log.New(io.Discard, "", 0), logger.Config{LogLevel: logger.Silent}),
	})
	if err != nil {
		return nil, fmt.Errorf("open the %s database: %w", driver, err)
	}
	s.db = db
	if driver == "sqlite" {
		s.writer = &writer{db: db.WithContext(context.Background())}
	}
	pool, err := db.DB()
	if err != nil {
		return nil, fmt.Errorf("open the %s database: %w", driver, err)
	}
	pool.SetMaxOpenConns(16)
	pool.SetMaxIdleConns(8)
	if driver == "mysql" {
		pool.SetConnMaxLifetime(3 * time.Minute) // below the usual wait_timeout of servers and proxies
	}
	if err := s.migrate(ctx, driver); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

// private makes the database file and its directory for the owner's eyes only, before SQLite makes it for everybody's.
func private(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the database's directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make the database file: %w", err)
	}
	return f.Close()
}

func (s *Store) migrate(ctx context.Context, driver string) error {
	db := s.db.WithContext(ctx)
	if driver == "mysql" {
		// A binary collation: text compares as it does in SQLite.
		db = db.Set("gorm:table_options", "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin")
	}
	var err error
	for try := range 5 { // two gateways that start at once step on each other's CREATE TABLE
		if err = db.AutoMigrate(&User{}, &Session{}, &RefreshToken{}, &Code{}, &Key{}, &Image{}, &Environment{}, &History{}, &Audit{}, &Mark{}); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(try+1) * 200 * time.Millisecond):
		}
	}
	return fmt.Errorf("bring the tables up to date: %w", err)
}

// Close closes every connection.
func (s *Store) Close() error {
	pool, err := s.db.DB()
	if err != nil {
		return err
	}
	return pool.Close()
}

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	pool, err := s.db.DB()
	if err != nil {
		return err
	}
	return pool.PingContext(ctx)
}

// tx runs fn in a transaction, again when the database broke a deadlock at our cost, or somebody who shared the transaction
// was refused. fn must be repeatable.
func (s *Store) tx(ctx context.Context, fn func(db *gorm.DB) error) error {
	if s.writer != nil {
		return translate(s.writer.do(ctx, fn))
	}
	var err error
	for range 5 {
		err = s.db.WithContext(ctx).Transaction(fn)
		var refused *mysqldriver.MySQLError
		if !errors.As(err, &refused) || (refused.Number != 1213 && refused.Number != 1205) { // deadlock, lock wait timeout
			break
		}
	}
	return translate(err)
}

func translate(err error) error {
	switch {
	case errors.Is(err, gorm.ErrRecordNotFound):
		return ErrNotFound
	case errors.Is(err, gorm.ErrDuplicatedKey):
		return ErrConflict
	}
	var refused *gosqlite.Error
	if errors.As(err, &refused) {
		switch refused.Code() & 0xff { // the rest says in which way
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN:
			return fmt.Errorf("%w: %w", ErrAway, err)
		}
	}
	return err
}

// locked asks for row locks where there are any; SQLite's transactions hold the whole database instead.
func locked(db *gorm.DB) *gorm.DB { return db.Clauses(clause.Locking{Strength: "UPDATE"}) }

// affected turns "no row matched" into ErrNotFound.
func affected(res *gorm.DB) error {
	if res.Error != nil {
		return translate(res.Error)
	}
	if res.RowsAffected == 0 {
		return ErrNotFound
	}
	return nil
}

// Purge forgets login sessions, tokens and codes that ended, a day later, and audit entries older than a year. It
// returns how many rows went.
func (s *Store) Purge(ctx context.Context, now time.Time) (int64, error) {
	ended := At(now.Add(-24 * time.Hour))
	var total int64
	for _, step := range []struct {
		row   any
		where string
		arg   Time
	}{
		{&RefreshToken{}, "expires_at < ?", ended},
		{&Session{}, "expires_at < ?", ended},
		{&Code{}, "expires_at < ?", ended},
		{&Audit{}, "at < ?", At(now.AddDate(-1, 0, 0))},
	} {
		res := s.db.WithContext(ctx).Where(step.where, step.arg).Delete(step.row)
		if res.Error != nil {
			return total, fmt.Errorf("forget old rows: %w", res.Error)
		}
		total += res.RowsAffected
	}
	return total, nil
}

// once runs fn, if it never ran to its end on this database, in one transaction with the mark that it did.
func (s *Store) once(ctx context.Context, name string, fn func(db *gorm.DB) error) error {
	err := s.tx(ctx, func(db *gorm.DB) error {
		var found int64
		if err := db.Model(&Mark{}).Where("name = ?", name).Count(&found).Error; err != nil {
			return err
		}
		if found > 0 {
			return nil
		}
		if err := db.Create(&Mark{Name: name, At: At(time.Now())}).Error; err != nil {
			return err
		}
		return fn(db)
	})
	if errors.Is(err, ErrConflict) {
		return nil // another gateway was first
	}
	return err
}
