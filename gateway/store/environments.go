package store

import (
	"context"
	"time"

	"gorm.io/gorm"
)

// ActiveStates are those that count against a user's allowance: something exists, or will, on a node.
var ActiveStates = []string{"queued", "pulling", "creating", "running", "stopping"}

// CreateEnvironment inserts e, unless its user holds max active ones: ErrAllowance.
func (s *Store) CreateEnvironment(ctx context.Context, e *Environment, max int) error {
	return s.tx(ctx, func(db *gorm.DB) error {
		if err := allowed(db, e.UserID, max); err != nil {
			return err
		}
		if err := db.Create(e).Error; err != nil {
			return err
		}
		return db.Create(&History{EnvironmentID: e.ID, At: e.CreatedAt, State: e.State, Reason: e.Reason}).Error
	})
}

// RetryEnvironment changes an environment that is not active by fn, which makes it active again, unless its user
// holds max active ones: ErrAllowance. ErrConflict when it is active.
func (s *Store) RetryEnvironment(ctx context.Context, id string, max int, fn func(*Environment) error) (Environment, error) {
	// The owner never changes. It is read outside, since MySQL's transactions see the world as of their first plain read.
	e, err := s.Environment(ctx, id)
	if err != nil {
		return e, err
	}
	err = s.tx(ctx, func(db *gorm.DB) error {
		if err := allowed(db, e.UserID, max); err != nil {
			return err
		}
		e = Environment{}
		if err := locked(db).Take(&e, "id = ?", id).Error; err != nil {
			return err
		}
		if active(e.State) {
			return ErrConflict
		}
		if err := fn(&e); err != nil {
			return err
		}
		if err := db.Save(&e).Error; err != nil {
			return err
		}
		return db.Create(&History{EnvironmentID: e.ID, At: e.UpdatedAt, State: e.State, Reason: e.Reason}).Error
	})
	return e, err
}

// allowed holds the user's row, which makes simultaneous creates of one user wait for each other, and counts.
func allowed(db *gorm.DB, user int64, max int) error {
	if err := locked(db).Take(&User{}, "id = ?", user).Error; err != nil {
		return err
	}
	n, err := countActive(db, user)
	if err != nil {
		return err
	}
	if n >= int64(max) {
		return ErrAllowance
	}
	return nil
}

func active(state string) bool {
	for _, s := range ActiveStates {
		if s == state {
			return true
		}
	}
	return false
}

func countActive(db *gorm.DB, user int64) (int64, error) {
	var n int64
	err := db.Model(&Environment{}).Where("user_id = ? AND state IN ?", user, ActiveStates).Count(&n).Error
	return n, err
}

// CountActive is how many environments each user holds.
func (s *Store) CountActive(ctx context.Context) (map[int64]int, error) {
	var rows []struct {
		UserID int64
		N      int
	}
	err := s.db.WithContext(ctx).Model(&Environment{}).Select("user_id, COUNT(*) AS n").
		Where("state IN ?", ActiveStates).Group("user_id").Find(&rows).Error
	counts := make(map[int64]int, len(rows))
	for _, r := range rows {
		counts[r.UserID] = r.N
	}
	return counts, translate(err)
}

// Environment finds an environment by its id.
func (s *Store) Environment(ctx context.Context, id string) (Environment, error) {
	var e Environment
	err := s.db.WithContext(ctx).Take(&e, "id = ?", id).Error
	return e, translate(err)
}

// Filter selects environments; zero fields select all.
type Filter struct {
	IDs          []string // deleted ones too
	User         int64
	States       []string
	Deleted      bool // deleted ones too
	ChangedSince Time
	NotEnqueued  bool
	Limit        int
}

// Environments lists what f selects, newest first.
func (s *Store) Environments(ctx context.Context, f Filter) ([]Environment, error) {
	db := s.db.WithContext(ctx)
	if len(f.IDs) > 0 {
		db, f.Deleted = db.Where("id IN ?", padded(f.IDs)), true
	}
	if f.User != 0 {
		db = db.Where("user_id = ?", f.User)
	}
	if len(f.States) > 0 {
		db = db.Where("state IN ?", f.States)
	} else if !f.Deleted {
		db = db.Where("state <> ?", "deleted")
	}
	if f.ChangedSince != 0 {
		db = db.Where("updated_at >= ?", f.ChangedSince)
	}
	if f.NotEnqueued {
		db = db.Where("enqueued = ?", false)
	}
	if f.Limit > 0 {
		db = db.Limit(f.Limit)
	}
	var list []Environment
	err := db.Order("created_at DESC, id").Find(&list).Error
	return list, translate(err)
}

// ChangeEnvironment changes an environment by fn, which sees the newest row and tells whether it changed anything. A
// new state goes into the history; so does a note, whatever the state.
func (s *Store) ChangeEnvironment(ctx context.Context, id string, now time.Time, fn func(*Environment) (changed bool, note string, err error)) (Environment, bool, error) {
	var e Environment
	var changed bool
	err := s.tx(ctx, func(db *gorm.DB) error {
		e = Environment{}
		if err := locked(db).Take(&e, "id = ?", id).Error; err != nil {
			return err
		}
		was := e.State
		var note string
		var err error
		if changed, note, err = fn(&e); err != nil || !changed {
			return err
		}
		e.UpdatedAt = At(now)
		if err := save(db, &e, was); err != nil {
			return err
		}
		if e.State == was && note == "" {
			return nil
		}
		if note == "" {
			note = e.Reason
		}
		return db.Create(&History{EnvironmentID: id, At: e.UpdatedAt, State: e.State, Reason: note}).Error
	})
	return e, changed && err == nil, err
}

// save writes a changed row back. Indexed columns that are as they were are left out: naming them would have their indexes
// written anew.
func save(db *gorm.DB, e *Environment, was string) error {
	same := []string{"UserID"} // it never changes
	if e.State == was {
		same = append(same, "State")
	}
	return db.Omit(same...).Save(e).Error
}

// padded repeats the last id until there are 1, 2, 4, 8, … of them: each number is another statement to prepare and to keep.
func padded(ids []string) []string {
	n := 1
	for n < len(ids) {
		n *= 2
	}
	all := make([]string, len(ids), n)
	copy(all, ids)
	for len(ids) > 0 && len(all) < n {
		all = append(all, ids[len(ids)-1])
	}
	return all
}

// Change is one step in an environment's life: Apply changes the row and tells whether it did.
type Change struct {
	ID    string
	Apply func(*Environment) bool
}

// ChangeEnvironments makes many changes, of one or of many environments, in one transaction and in their order. Each new
// state on the way goes into the history. It returns the rows as they are afterwards, without those that are not there, and
// which of them have changed.
func (s *Store) ChangeEnvironments(ctx context.Context, now time.Time, changes []Change) (rows map[string]Environment, changed map[string]bool, err error) {
	var ids []string
	seen := map[string]bool{}
	for _, c := range changes {
		if !seen[c.ID] {
			seen[c.ID], ids = true, append(ids, c.ID)
		}
	}
	err = s.tx(ctx, func(db *gorm.DB) error {
		rows, changed = make(map[string]Environment, len(ids)), map[string]bool{}
		var list []Environment
		if err := locked(db).Order("id").Find(&list, "id IN ?", padded(ids)).Error; err != nil { // in one order, so that two gateways don't block each other
			return err
		}
		was := make(map[string]string, len(list))
		for _, e := range list {
			rows[e.ID], was[e.ID] = e, e.State
		}
		var history []History
		for _, c := range changes {
			e, ok := rows[c.ID]
			state := e.State
			if !ok || !c.Apply(&e) {
				continue
			}
			e.UpdatedAt, changed[c.ID] = At(now), true
			rows[c.ID] = e
			if e.State != state {
				history = append(history, History{EnvironmentID: c.ID, At: e.UpdatedAt, State: e.State, Reason: e.Reason})
			}
		}
		for _, e := range list {
			if !changed[e.ID] {
				continue
			}
			e, before := rows[e.ID], was[e.ID]
			if err := save(db, &e, before); err != nil {
				return err
			}
		}
		if len(history) == 0 {
			return nil
		}
		return db.Create(&history).Error
	})
	return rows, changed, err
}

// History lists what happened to an environment, oldest first.
func (s *Store) History(ctx context.Context, id string) ([]History, error) {
	var list []History
	err := s.db.WithContext(ctx).Where("environment_id = ?", id).Order("id").Find(&list).Error
	return list, translate(err)
}
