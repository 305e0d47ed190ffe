package store

import (
	"context"
	"fmt"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// CreateUser inserts u and fills in its id; ErrConflict when the name or the proven address is taken.
func (s *Store) CreateUser(ctx context.Context, u *User) error {
	return translate(s.db.WithContext(ctx).Create(u).Error)
}

// CreateFirstUser inserts u if there is no user yet; ErrConflict otherwise.
func (s *Store) CreateFirstUser(ctx context.Context, u *User) error {
	return s.tx(ctx, func(db *gorm.DB) error {
		var n int64
		if err := db.Model(&User{}).Count(&n).Error; err != nil {
			return err
		}
		if n > 0 {
			return ErrConflict
		}
		return db.Create(u).Error
	})
}

// User finds an account by its id.
func (s *Store) User(ctx context.Context, id int64) (User, error) {
	var u User
	err := s.db.WithContext(ctx).Take(&u, "id = ?", id).Error
	return u, translate(err)
}

// UserByName finds an account by its lower-case name.
func (s *Store) UserByName(ctx context.Context, name string) (User, error) {
	var u User
	err := s.db.WithContext(ctx).Take(&u, "username = ?", name).Error
	return u, translate(err)
}

// Users lists everybody by name.
func (s *Store) Users(ctx context.Context) ([]User, error) {
	var list []User
	err := s.db.WithContext(ctx).Order("username").Find(&list).Error
	return list, translate(err)
}

// UpdateUser changes an account by fn, which sees the newest row. ErrLastAdmin when nobody would be left to
// administrate; ErrConflict when the proven address is taken.
func (s *Store) UpdateUser(ctx context.Context, id int64, fn func(*User) error) (User, error) {
	var u User
	err := s.tx(ctx, func(db *gorm.DB) error {
		// All admins are locked, in order, so that two of them can't demote each other at once.
		var admins []int64
		if err := locked(db).Model(&User{}).Where("admin = ? OR id = ?", true, id).Order("id").Pluck("id", &admins).Error; err != nil {
			return err
		}
		if err := db.Take(&u, "id = ?", id).Error; err != nil {
			return err
		}
		was := u.Admin && !u.Disabled
		if err := fn(&u); err != nil {
			return err
		}
		if err := db.Save(&u).Error; err != nil {
			return err
		}
		if was && !(u.Admin && !u.Disabled) {
			var left int64
			if err := db.Model(&User{}).Where("admin = ? AND disabled = ?", true, false).Count(&left).Error; err != nil {
				return err
			}
			if left == 0 {
				return ErrLastAdmin
			}
		}
		return nil
	})
	return u, err
}

// CreateSession starts a login with its first refresh token and notes when the user came.
func (s *Store) CreateSession(ctx context.Context, session *Session, token *RefreshToken) error {
	return s.tx(ctx, func(db *gorm.DB) error {
		// A login that races with the account's being disabled must lose.
		res := db.Model(&User{}).Where("id = ? AND disabled = ?", session.UserID, false).Update("last_login_at", session.CreatedAt)
		if err := affected(res); err != nil {
			return err
		}
		if err := db.Create(session).Error; err != nil {
			return err
		}
		return db.Create(token).Error
	})
}

// LiveSession finds a login that has not ended, and its user. ErrRevoked when it ended by logout, revocation, age or
// because the account was disabled; ErrNotFound when there never was one.
func (s *Store) LiveSession(ctx context.Context, id string, now time.Time) (Session, User, error) {
	return liveSession(s.db.WithContext(ctx), id, now)
}

func liveSession(db *gorm.DB, id string, now time.Time) (Session, User, error) {
	var session Session
	var user User
	if err := db.Take(&session, "id = ?", id).Error; err != nil {
		return session, user, translate(err)
	}
	if session.RevokedAt != 0 || session.ExpiresAt <= At(now) {
		return session, user, ErrRevoked
	}
	if err := db.Take(&user, "id = ?", session.UserID).Error; err != nil {
		return session, user, translate(err)
	}
	if user.Disabled {
		return session, user, ErrRevoked
	}
	return session, user, nil
}

// Ended returns those of the given login sessions that are not live any more.
func (s *Store) Ended(ctx context.Context, ids []string, now time.Time) ([]string, error) {
	live := make(map[string]bool, len(ids))
	for part := ids; len(part) > 0; {
		n := min(len(part), 500) // SQLite and MySQL bound the number of parameters
		var found []string
		err := s.db.WithContext(ctx).Model(&Session{}).
			Joins("JOIN users ON users.id = sessions.user_id").
			Where("sessions.id IN ? AND sessions.revoked_at = 0 AND sessions.expires_at > ? AND users.disabled = ?", part[:n], At(now), false).
			Pluck("sessions.id", &found).Error
		if err != nil {
			return nil, fmt.Errorf("look for ended sessions: %w", err)
		}
		for _, id := range found {
			live[id] = true
		}
		part = part[n:]
	}
	var ended []string
	for _, id := range ids {
		if !live[id] {
			ended = append(ended, id)
		}
	}
	return ended, nil
}

// Rotate trades the refresh token with the hash old for next, whose SessionID it fills in, and moves the session's
// end to next's. A token works once: its second use revokes the session and is ErrReused. ErrNotFound for a token
// that never was, ErrRevoked for one whose time or session is over.
func (s *Store) Rotate(ctx context.Context, old string, next *RefreshToken, now time.Time) (Session, User, error) {
	var session Session
	var user User
	var reused bool
	err := s.tx(ctx, func(db *gorm.DB) error {
		reused = false
		var token RefreshToken
		if err := locked(db).Take(&token, "hash = ?", old).Error; err != nil {
			return err
		}
		var err error
		if token.UsedAt != 0 {
			reused = true
			session.ID = token.SessionID
			if err := db.Take(&session, "id = ?", token.SessionID).Error; err != nil {
				return err
			}
			return revoke(db, token.SessionID, now)
		}
		if session, user, err = liveSession(db, token.SessionID, now); err != nil {
			return err
		}
		if token.ExpiresAt <= At(now) {
			return ErrRevoked
		}
		if err := db.Model(&token).Update("used_at", At(now)).Error; err != nil {
			return err
		}
		session.ExpiresAt = next.ExpiresAt
		if err := db.Model(&session).Update("expires_at", session.ExpiresAt).Error; err != nil {
			return err
		}
		next.SessionID = session.ID
		return db.Create(next).Error
	})
	if err == nil && reused {
		err = ErrReused
	}
	return session, user, err
}

// SessionOf is the id of the session that a refresh token belongs to, used or not.
func (s *Store) SessionOf(ctx context.Context, hash string) (string, error) {
	var token RefreshToken
	err := s.db.WithContext(ctx).Take(&token, "hash = ?", hash).Error
	return token.SessionID, translate(err)
}

func revoke(db *gorm.DB, id string, now time.Time) error {
	return db.Model(&Session{}).Where("id = ? AND revoked_at = 0", id).Update("revoked_at", At(now)).Error
}

// RevokeSession ends a login; it is no error when it has ended.
func (s *Store) RevokeSession(ctx context.Context, id string, now time.Time) error {
	return translate(revoke(s.db.WithContext(ctx), id, now))
}

// RevokeUser ends every login of a user but the one with the id except ("" for none) and returns their ids.
func (s *Store) RevokeUser(ctx context.Context, user int64, except string, now time.Time) ([]string, error) {
	var ids []string
	err := s.tx(ctx, func(db *gorm.DB) error {
		ids = nil
		where := db.Model(&Session{}).Where("user_id = ? AND id <> ? AND revoked_at = 0", user, except).Session(&gorm.Session{})
		if err := where.Pluck("id", &ids).Error; err != nil {
			return err
		}
		return where.Update("revoked_at", At(now)).Error
	})
	return ids, err
}

// PutCode replaces the code of an address and its count of attempts.
func (s *Store) PutCode(ctx context.Context, c *Code) error {
	return translate(s.db.WithContext(ctx).Clauses(clause.OnConflict{UpdateAll: true}).Create(c).Error)
}

// UseCode tells whether hash is the address's code, which then is spent. Each call is an attempt; after limit of them
// nothing is right any more.
func (s *Store) UseCode(ctx context.Context, email, hash string, limit int, now time.Time) (bool, error) {
	res := s.db.WithContext(ctx).Model(&Code{}).
		Where("email = ? AND attempts < ? AND expires_at > ?", email, limit, At(now)).
		Update("attempts", gorm.Expr("attempts + 1"))
	if res.Error != nil {
		return false, fmt.Errorf("count an attempt: %w", res.Error)
	}
	if res.RowsAffected == 0 {
		return false, nil
	}
	// The row is deleted by its hash, so one code serves one of two simultaneous users only.
	res = s.db.WithContext(ctx).Where("email = ? AND hash = ?", email, hash).Delete(&Code{})
	if res.Error != nil {
		return false, fmt.Errorf("spend a code: %w", res.Error)
	}
	return res.RowsAffected == 1, nil
}

// AddKey inserts k and fills in its id; ErrConflict when the user has that key.
func (s *Store) AddKey(ctx context.Context, k *Key) error {
	return translate(s.db.WithContext(ctx).Create(k).Error)
}

// CountKeys is how many keys a user has.
func (s *Store) CountKeys(ctx context.Context, user int64) (int64, error) {
	var n int64
	err := s.db.WithContext(ctx).Model(&Key{}).Where("user_id = ?", user).Count(&n).Error
	return n, translate(err)
}

// Keys lists a user's keys, oldest first.
func (s *Store) Keys(ctx context.Context, user int64) ([]Key, error) {
	var list []Key
	err := s.db.WithContext(ctx).Where("user_id = ?", user).Order("id").Find(&list).Error
	return list, translate(err)
}

// DeleteKey removes a key of that user.
func (s *Store) DeleteKey(ctx context.Context, user, id int64) error {
	return affected(s.db.WithContext(ctx).Where("id = ? AND user_id = ?", id, user).Delete(&Key{}))
}

// UseKey finds the user with that name who has a key with that fingerprint, and notes the use.
func (s *Store) UseKey(ctx context.Context, username, fingerprint string, now time.Time) (User, Key, error) {
	var key Key
	user, err := s.UserByName(ctx, username)
	if err != nil {
		return user, key, err
	}
	db := s.db.WithContext(ctx)
	if err := db.Take(&key, "user_id = ? AND fingerprint = ?", user.ID, fingerprint).Error; err != nil {
		return user, key, translate(err)
	}
	err = db.Model(&key).Update("last_used_at", At(now)).Error
	return user, key, translate(err)
}

// AddAudit appends to the audit log.
func (s *Store) AddAudit(ctx context.Context, a *Audit) error {
	return translate(s.db.WithContext(ctx).Create(a).Error)
}

// Audit lists at most limit entries with ids below before (0: the newest), newest first.
func (s *Store) Audit(ctx context.Context, before int64, limit int) ([]Audit, error) {
	db := s.db.WithContext(ctx)
	if before > 0 {
		db = db.Where("id < ?", before)
	}
	var list []Audit
	err := db.Order("id DESC").Limit(limit).Find(&list).Error
	return list, translate(err)
}
