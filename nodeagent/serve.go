package nodeagent

import (
	"context"
	"errors"

	"github.com/learnos/learnos/internal/config"
)

// Serve runs the node's daemon until ctx ends.
func Serve(ctx context.Context, cfg *config.Config) error { return errors.New("nodeagent: not written yet") }
