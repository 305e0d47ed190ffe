package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/learnos/learnos/gateway/store"
)

var (
	ctx  = context.Background()
	noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
}

func user(t *testing.T, s *store.Store, name string) store.User {
	t.Helper()
	u := store.User{Username: name, PasswordHash: "x", CreatedAt: store.At(noon)}
	must(t, s.CreateUser(ctx, &u))
	return u
}

func login(t *testing.T, s *store.Store, u store.User, id, token string) {
	t.Helper()
	must(t, s.CreateSession(ctx,
		&store.Session{ID: id, UserID: u.ID, CreatedAt: store.At(noon), ExpiresAt: store.At(noon.Add(time.Hour))},
		&store.RefreshToken{Hash: token, SessionID: id, CreatedAt: store.At(noon), ExpiresAt: store.At(noon.Add(time.Hour))}))
}

func next(hash string) *store.RefreshToken {
	return &store.RefreshToken{Hash: hash, CreatedAt: store.At(noon), ExpiresAt: store.At(noon.Add(2 * time.Hour))}
}

func TestUsers(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		u := user(t, s, "ada")
		want(t, s.CreateUser(ctx, &store.User{Username: "ada", PasswordHash: "y"}), store.ErrConflict)
		want(t, s.CreateFirstUser(ctx, &store.User{Username: "admin", PasswordHash: "y"}), store.ErrConflict)
		got, err := s.UserByName(ctx, "ada")
		must(t, err)
		if !reflect.DeepEqual(got, u) {
			t.Fatalf("%+v, want %+v", got, u)
		}
		_, err = s.UserByName(ctx, "ADA ")
		want(t, err, store.ErrNotFound)
		_, err = s.User(ctx, u.ID+99)
		want(t, err, store.ErrNotFound)

		mail := "ada@example.org"
		_, err = s.UpdateUser(ctx, u.ID, func(u *store.User) error { u.Email, u.VerifiedEmail = mail, &mail; return nil })
		must(t, err)
		other := user(t, s, "bob")
		_, err = s.UpdateUser(ctx, other.ID, func(u *store.User) error { u.Email = mail; return nil })
		must(t, err) // a claimed address is nobody's
		_, err = s.UpdateUser(ctx, other.ID, func(u *store.User) error { u.VerifiedEmail = &mail; return nil })
		want(t, err, store.ErrConflict)
		list, err := s.Users(ctx)
		must(t, err)
		if len(list) != 2 || list[0].Username != "ada" || list[1].VerifiedEmail != nil {
			t.Fatalf("%+v", list)
		}
	})
}

func TestLastAdminStays(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		var ids []int64
		for i := range 4 {
			u := store.User{Username: fmt.Sprintf("admin%d", i), PasswordHash: "x", Admin: true}
			must(t, s.CreateUser(ctx, &u))
			ids = append(ids, u.ID)
		}
		var wg sync.WaitGroup
		var refused atomic.Int32
		for i, id := range ids { // all at once: exactly one must be refused
			wg.Go(func() {
				_, err := s.UpdateUser(ctx, id, func(u *store.User) error {
					if i%2 == 0 {
						u.Admin = false
					} else {
						u.Disabled = true
					}
					return nil
				})
				if errors.Is(err, store.ErrLastAdmin) {
					refused.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if refused.Load() != 1 {
			t.Fatalf("%d refused, want 1", refused.Load())
		}
	})
}

func TestRefreshTokenWorksOnce(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		u := user(t, s, "ada")
		login(t, s, u, "s1", "r1")
		session, got, err := s.Rotate(ctx, "r1", next("r2"), noon)
		must(t, err)
		if session.ID != "s1" || got.ID != u.ID || session.ExpiresAt != store.At(noon.Add(2*time.Hour)) {
			t.Fatalf("%+v %+v", session, got)
		}
		_, _, err = s.LiveSession(ctx, "s1", noon)
		must(t, err)
		_, _, err = s.Rotate(ctx, "never", next("x"), noon)
		want(t, err, store.ErrNotFound)
		_, _, err = s.Rotate(ctx, "r1", next("r3"), noon) // the thief, or the victim
		want(t, err, store.ErrReused)
		_, _, err = s.LiveSession(ctx, "s1", noon)
		want(t, err, store.ErrRevoked)
		_, _, err = s.Rotate(ctx, "r2", next("r4"), noon)
		want(t, err, store.ErrRevoked)
	})
}

func TestSimultaneousRefreshes(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		login(t, s, user(t, s, "ada"), "s1", "r")
		var wins, reuses atomic.Int32
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				_, _, err := s.Rotate(ctx, "r", next(fmt.Sprint("n", i)), noon)
				switch {
				case err == nil:
					wins.Add(1)
				case errors.Is(err, store.ErrReused):
					reuses.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 || reuses.Load() != 11 {
			t.Fatalf("%d wins, %d reuses", wins.Load(), reuses.Load())
		}
		_, _, err := s.LiveSession(ctx, "s1", noon)
		want(t, err, store.ErrRevoked)
	})
}

func TestSessionsEnd(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		u := user(t, s, "ada")
		for i := range 4 {
			login(t, s, u, fmt.Sprint("s", i), fmt.Sprint("r", i))
		}
		must(t, s.RevokeSession(ctx, "s0", noon))
		must(t, s.RevokeSession(ctx, "s0", noon))
		ended, err := s.Ended(ctx, []string{"s0", "s1", "nobody"}, noon)
		must(t, err)
		if !reflect.DeepEqual(ended, []string{"s0", "nobody"}) {
			t.Fatal(ended)
		}
		ids, err := s.RevokeUser(ctx, u.ID, "s2", noon)
		must(t, err)
		if len(ids) != 2 {
			t.Fatalf("revoked %v", ids)
		}
		_, _, err = s.LiveSession(ctx, "s2", noon)
		must(t, err)
		_, _, err = s.LiveSession(ctx, "s2", noon.Add(time.Hour))
		want(t, err, store.ErrRevoked)
		_, err = s.UpdateUser(ctx, u.ID, func(u *store.User) error { u.Disabled = true; return nil })
		must(t, err)
		_, _, err = s.LiveSession(ctx, "s2", noon)
		want(t, err, store.ErrRevoked)
		err = s.CreateSession(ctx, &store.Session{ID: "s9", UserID: u.ID}, &store.RefreshToken{Hash: "r9", SessionID: "s9"})
		want(t, err, store.ErrNotFound)

		n, err := s.Purge(ctx, noon.Add(48*time.Hour))
		must(t, err)
		if n != 8 {
			t.Fatalf("purged %d rows, want 4 sessions and 4 tokens", n)
		}
	})
}

func TestCodes(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		put := func(hash string) {
			must(t, s.PutCode(ctx, &store.Code{Email: "a@b", Hash: hash, ExpiresAt: store.At(noon.Add(time.Minute))}))
		}
		use := func(hash string, now time.Time) bool {
			ok, err := s.UseCode(ctx, "a@b", hash, 3, now)
			must(t, err)
			return ok
		}
		put("one")
		put("two") // replaces it
		if use("one", noon) || use("two", noon.Add(time.Hour)) || !use("two", noon) || use("two", noon) {
			t.Fatal("a code must work once, in its time, and only the newest")
		}
		put("three")
		for range 3 {
			use("guess", noon)
		}
		if use("three", noon) {
			t.Fatal("right after too many attempts")
		}
		put("four")
		var wins atomic.Int32
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if ok, err := s.UseCode(ctx, "a@b", "four", 3, noon); err != nil {
					t.Error(err)
				} else if ok {
					wins.Add(1)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("one code served %d", wins.Load())
		}
	})
}

func TestKeys(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		ada, bob := user(t, s, "ada"), user(t, s, "bob")
		k := store.Key{UserID: ada.ID, Fingerprint: "SHA256:a", Name: "laptop", Type: "ssh-ed25519", Key: "ssh-ed25519 AAAA"}
		must(t, s.AddKey(ctx, &k))
		again := k
		again.ID = 0
		want(t, s.AddKey(ctx, &again), store.ErrConflict)
		again.UserID = bob.ID
		must(t, s.AddKey(ctx, &again))
		u, _, err := s.UseKey(ctx, "bob", "SHA256:a", noon)
		must(t, err)
		if u.ID != bob.ID {
			t.Fatal(u)
		}
		_, _, err = s.UseKey(ctx, "bob", "SHA256:A", noon) // base64 has cases
		want(t, err, store.ErrNotFound)
		want(t, s.DeleteKey(ctx, bob.ID, k.ID), store.ErrNotFound) // somebody else's
		must(t, s.DeleteKey(ctx, ada.ID, k.ID))
		list, err := s.Keys(ctx, bob.ID)
		must(t, err)
		if n, err := s.CountKeys(ctx, bob.ID); err != nil || n != 1 || len(list) != 1 || list[0].LastUsedAt != store.At(noon) {
			t.Fatal(n, err, list)
		}
	})
}

func TestImages(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		seed := []store.Image{
			{Name: "b", Source: "b", Command: []string{"sh", "-c", "ü"}, Enabled: true, Position: 2, Rations: store.Rations{CPUs: 0.5, PIDs: 7}},
			{Name: "a", Source: "a", Enabled: false, Position: 1},
		}
		must(t, s.SeedImages(ctx, seed))
		all, err := s.Images(ctx, true)
		must(t, err)
		if len(all) != 2 || all[0].Name != "a" || !reflect.DeepEqual(all[1].Command, []string{"sh", "-c", "ü"}) || all[1].CPUs != 0.5 || all[1].PIDs != 7 {
			t.Fatalf("%+v", all)
		}
		on, err := s.Images(ctx, false)
		must(t, err)
		if len(on) != 1 {
			t.Fatalf("%+v", on)
		}
		_, err = s.UpdateImage(ctx, all[0].ID, func(i *store.Image) error { i.Name = "b"; return nil })
		want(t, err, store.ErrConflict)
		want(t, s.CreateImage(ctx, &store.Image{Name: "a"}), store.ErrConflict)
		for _, i := range all {
			_, err := s.DeleteImage(ctx, i.ID)
			must(t, err)
		}
		_, err = s.DeleteImage(ctx, all[0].ID)
		want(t, err, store.ErrNotFound)
		must(t, s.SeedImages(ctx, seed)) // what an admin removed stays away
		if all, err = s.Images(ctx, true); err != nil || len(all) != 0 {
			t.Fatal(all, err)
		}
	})
}

func env(u store.User, id string) *store.Environment {
	return &store.Environment{ID: id, UserID: u.ID, Owner: u.Username, State: "queued", CreatedAt: store.At(noon), UpdatedAt: store.At(noon),
		Command: []string{"sh"}, Timings: map[string]int64{"pull": 5}}
}

func TestAllowanceHoldsInARace(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		u, other := user(t, s, "ada"), user(t, s, "bob")
		must(t, s.CreateEnvironment(ctx, env(other, "other"), 3))
		var made, refused atomic.Int32
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				switch err := s.CreateEnvironment(ctx, env(u, fmt.Sprint("e", i)), 3); {
				case err == nil:
					made.Add(1)
				case errors.Is(err, store.ErrAllowance):
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if made.Load() != 3 || refused.Load() != 17 {
			t.Fatalf("%d made, %d refused", made.Load(), refused.Load())
		}
		counts, err := s.CountActive(ctx)
		must(t, err)
		if counts[u.ID] != 3 || counts[other.ID] != 1 {
			t.Fatal(counts)
		}
	})
}

func TestEnvironments(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		u := user(t, s, "ada")
		must(t, s.CreateEnvironment(ctx, env(u, "e1"), 2))
		must(t, s.CreateEnvironment(ctx, env(u, "e2"), 2))
		set := func(id, state, reason string) (store.Environment, bool) {
			e, changed, err := s.ChangeEnvironment(ctx, id, noon.Add(time.Second), func(e *store.Environment) (bool, string, error) {
				if e.State == state {
					return false, "", nil
				}
				e.State, e.Reason, e.Timings = state, reason, map[string]int64{"start": 1}
				return true, "", nil
			})
			must(t, err)
			return e, changed
		}
		if e, changed := set("e1", "failed", "no"); !changed || e.State != "failed" || !reflect.DeepEqual(e.Timings, map[string]int64{"start": 1}) {
			t.Fatal(e, changed)
		}
		if _, changed := set("e1", "failed", "again"); changed {
			t.Fatal("changed without a change")
		}
		boom := errors.New("boom")
		_, changed, err := s.ChangeEnvironment(ctx, "e1", noon, func(e *store.Environment) (bool, string, error) { e.State = "running"; return true, "", boom })
		want(t, err, boom)
		if changed {
			t.Fatal("changed by an error")
		}
		_, _, err = s.ChangeEnvironment(ctx, "nothing", noon, func(e *store.Environment) (bool, string, error) { return true, "", nil })
		want(t, err, store.ErrNotFound)
		_, _, err = s.ChangeEnvironment(ctx, "e2", noon, func(e *store.Environment) (bool, string, error) { return true, "a note", nil })
		must(t, err)

		must(t, s.CreateEnvironment(ctx, env(u, "e3"), 2)) // e1 gave its place back
		retry := func(e *store.Environment) error { e.State, e.UpdatedAt = "queued", store.At(noon); return nil }
		_, err = s.RetryEnvironment(ctx, "e1", 2, retry)
		want(t, err, store.ErrAllowance)
		_, err = s.RetryEnvironment(ctx, "e2", 9, retry)
		want(t, err, store.ErrConflict)
		set("e3", "deleted", "")
		e, err := s.RetryEnvironment(ctx, "e1", 2, retry)
		must(t, err)
		if e.State != "queued" {
			t.Fatal(e)
		}
		h, err := s.History(ctx, "e1")
		must(t, err)
		var states []string
		for _, x := range h {
			states = append(states, x.State+":"+x.Reason)
		}
		if !reflect.DeepEqual(states, []string{"queued:", "failed:no", "queued:no"}) {
			t.Fatal(states)
		}
		if h, _ := s.History(ctx, "e2"); len(h) != 2 || h[1].Reason != "a note" {
			t.Fatal(h)
		}
		for _, c := range []struct {
			f store.Filter
			n int
		}{
			{store.Filter{}, 2}, {store.Filter{User: u.ID, Deleted: true}, 3}, {store.Filter{User: u.ID + 1}, 0},
			{store.Filter{States: []string{"deleted"}}, 1}, {store.Filter{Deleted: true, ChangedSince: store.At(noon.Add(time.Second))}, 1},
			{store.Filter{Deleted: true, Limit: 1}, 1}, {store.Filter{NotEnqueued: true}, 2},
		} {
			list, err := s.Environments(ctx, c.f)
			must(t, err)
			if len(list) != c.n {
				t.Errorf("%+v: %d rows, want %d", c.f, len(list), c.n)
			}
		}
	})
}

// Several gateways hear the same statuses and write them at the same time.
func TestManyChangesAtOnce(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		u := user(t, s, "ada")
		var ids []string
		for i := range 5 {
			ids = append(ids, fmt.Sprint("e", i))
			must(t, s.CreateEnvironment(ctx, env(u, ids[i]), 10))
		}
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				var changes []store.Change
				for i := range ids {
					id := ids[(i+g)%len(ids)]
					for rev := int64(1); rev <= 3; rev++ {
						changes = append(changes, store.Change{ID: id, Apply: func(e *store.Environment) bool {
							if rev <= e.StatusRev {
								return false
							}
							e.StatusRev, e.State, e.Timings = rev, fmt.Sprint("s", rev), map[string]int64{"rev": rev}
							return true
						}})
					}
				}
				changes = append(changes, store.Change{ID: "nobody", Apply: func(*store.Environment) bool { panic("applied to no row") }})
				rows, _, err := s.ChangeEnvironments(ctx, noon, changes)
				if err != nil || len(rows) != len(ids) || rows["e1"].StatusRev != 3 {
					t.Error(rows, err)
				}
			})
		}
		wg.Wait()
		for _, id := range ids {
			e, err := s.Environment(ctx, id)
			must(t, err)
			if e.State != "s3" || e.Timings["rev"] != 3 || e.UpdatedAt != store.At(noon) || e.UserID != u.ID || e.Command[0] != "sh" {
				t.Errorf("%+v", e)
			}
			list, err := s.History(ctx, id)
			must(t, err)
			var states []string
			for _, h := range list {
				states = append(states, h.State)
			}
			if !reflect.DeepEqual(states, []string{"queued", "s1", "s2", "s3"}) {
				t.Error(id, states)
			}
		}
		list, err := s.Environments(ctx, store.Filter{States: []string{"s3"}}) // by the index
		must(t, err)
		if len(list) != len(ids) {
			t.Error(list)
		}
		if list, err = s.Environments(ctx, store.Filter{IDs: []string{"e1", "e3", "nobody"}}); err != nil || len(list) != 2 {
			t.Error(list, err)
		}
	})
}

func TestAudit(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store) {
		for i := range 5 {
			must(t, s.AddAudit(ctx, &store.Audit{At: store.At(noon), Action: fmt.Sprint("a", i)}))
		}
		page, err := s.Audit(ctx, 0, 2)
		must(t, err)
		if len(page) != 2 || page[0].Action != "a4" {
			t.Fatal(page)
		}
		page, err = s.Audit(ctx, page[1].ID, 10)
		must(t, err)
		if len(page) != 3 || page[0].Action != "a2" {
			t.Fatal(page)
		}
	})
}

func TestReopenAndSimultaneousFirstOpen(t *testing.T) {
	for _, driver := range []string{"sqlite", "mysql"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			dsn := filepath.Join(t.TempDir(), "learnos.db")
			if driver == "mysql" {
				dsn = mariaDSN(t)
			}
			var wg sync.WaitGroup
			for i := range 3 {
				wg.Go(func() {
					s, err := store.Open(ctx, driver, dsn)
					if err != nil {
						t.Error(err)
						return
					}
					defer s.Close()
					u := store.User{Username: "admin", PasswordHash: fmt.Sprint(i)}
					if err := s.CreateFirstUser(ctx, &u); err != nil && !errors.Is(err, store.ErrConflict) {
						t.Error(err)
					}
					if err := s.SeedImages(ctx, []store.Image{{Name: "one"}}); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			s := open(t, driver, dsn)
			users, err := s.Users(ctx)
			must(t, err)
			images, err := s.Images(ctx, true)
			must(t, err)
			if len(users) != 1 || len(images) != 1 {
				t.Fatal(users, images)
			}
			if driver == "sqlite" {
				info, err := os.Stat(dsn)
				must(t, err)
				if info.Mode().Perm() != 0o600 {
					t.Fatal(info.Mode())
				}
			}
		})
	}
}

// A database of before these columns gets them, with no limit in each.
func TestOlderDatabase(t *testing.T) {
	for _, driver := range []string{"sqlite", "mysql"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			dsn := filepath.Join(t.TempDir(), "learnos.db")
			if driver == "mysql" {
				dsn = mariaDSN(t)
			}
			s := open(t, driver, dsn)
			must(t, s.CreateImage(ctx, &store.Image{Name: "a", Rations: store.Rations{MemoryBytes: 7, IOReadBPS: 8}, CapAdd: []string{"NET_RAW"}}))
			u := user(t, s, "ada")
			e := env(u, "e1")
			must(t, s.CreateEnvironment(ctx, e, 3))
			db, err := sql.Open(driver, dsn)
			must(t, err)
			defer db.Close()
			for _, table := range []string{"images", "environments"} {
				for _, column := range []string{"memory_high_bytes", "io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops", "net_up_bits", "cap_add"} {
					_, err := db.Exec("ALTER TABLE " + table + " DROP COLUMN " + column)
					must(t, err)
				}
			}
			s = open(t, driver, dsn)
			i, err := s.ImageByName(ctx, "a")
			must(t, err)
			if i.Rations != (store.Rations{MemoryBytes: 7}) || len(i.CapAdd) != 0 {
				t.Errorf("%+v", i)
			}
			r := store.Rations{MemoryBytes: 7, MemoryHighBytes: 1, IOReadBPS: 2, IOWriteBPS: 3, IOReadIOPS: 4, IOWriteIOPS: 5}
			_, err = s.UpdateImage(ctx, i.ID, func(i *store.Image) error { i.Rations, i.CapAdd = r, []string{"NET_RAW"}; return nil })
			must(t, err)
			if i, err = s.ImageByName(ctx, "a"); err != nil || i.Rations != r || len(i.CapAdd) != 1 {
				t.Errorf("%+v, %v", i, err)
			}
			old, err := s.Environment(ctx, "e1")
			must(t, err)
			if old.Rations != e.Rations {
				t.Errorf("%+v", old)
			}
		})
	}
}

func TestOpenRefusals(t *testing.T) {
	for _, c := range []struct{ driver, dsn string }{{"oracle", "x"}, {"mysql", "no dsn"}, {"sqlite", "/proc/nowhere/x.db"}} {
		if s, err := store.Open(ctx, c.driver, c.dsn); err == nil {
			s.Close()
			t.Errorf("%v was accepted", c)
		}
	}
}
