package store

import (
	"context"

	"gorm.io/gorm"
)

// SeedImages fills the catalogue, once in the life of a database: what an admin removes stays away.
func (s *Store) SeedImages(ctx context.Context, images []Image) error {
	return s.once(ctx, "images", func(db *gorm.DB) error { return db.Create(&images).Error })
}

// Images lists the catalogue in the gallery's order; only what is switched on unless all.
func (s *Store) Images(ctx context.Context, all bool) ([]Image, error) {
	db := s.db.WithContext(ctx)
	if !all {
		db = db.Where("enabled = ?", true)
	}
	var list []Image
	err := db.Order("position, name").Find(&list).Error
	return list, translate(err)
}

// ImageByName finds an image.
func (s *Store) ImageByName(ctx context.Context, name string) (Image, error) {
	var i Image
	err := s.db.WithContext(ctx).Take(&i, "name = ?", name).Error
	return i, translate(err)
}

// CreateImage inserts i and fills in its id; ErrConflict when the name is taken.
func (s *Store) CreateImage(ctx context.Context, i *Image) error {
	return translate(s.db.WithContext(ctx).Create(i).Error)
}

// UpdateImage changes an image by fn, which sees the newest row; ErrConflict when the name is taken.
func (s *Store) UpdateImage(ctx context.Context, id int64, fn func(*Image) error) (Image, error) {
	var i Image
	err := s.tx(ctx, func(db *gorm.DB) error {
		i = Image{}
		if err := locked(db).Take(&i, "id = ?", id).Error; err != nil {
			return err
		}
		if err := fn(&i); err != nil {
			return err
		}
		return db.Save(&i).Error
	})
	return i, err
}

// DeleteImage removes an image from the catalogue and returns what it was.
func (s *Store) DeleteImage(ctx context.Context, id int64) (Image, error) {
	var i Image
	err := s.tx(ctx, func(db *gorm.DB) error {
		i = Image{}
		if err := locked(db).Take(&i, "id = ?", id).Error; err != nil {
			return err
		}
		return db.Delete(&Image{}, "id = ?", id).Error
	})
	return i, err
}
