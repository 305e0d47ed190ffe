package stopwatch

import (
	"context"
	"regexp"
	"testing"
)

func TestStages(t *testing.T) {
	ctx, w := With(context.Background())
	for _, stage := range []string{"row", "queue", "row"} {
		Start(ctx, stage)()
	}
	Start(ctx, "never ended")
	if got := w.String(); !regexp.MustCompile(`^row;dur=\d+\.\d\d, queue;dur=\d+\.\d\d, total;dur=\d+\.\d\d$`).MatchString(got) {
		t.Error(got)
	}
}

func TestWithoutAWatchNothingIsKept(t *testing.T) {
	Start(context.Background(), "row")()
}
