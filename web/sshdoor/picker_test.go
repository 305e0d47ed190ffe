package sshdoor

import (
	"fmt"
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"
)

// Whatever the window's height and wherever the cursor is, the row under the cursor is shown, and the rows in sight and
// those told of as out of sight are all there are.
func TestPickerSaysHowManyRowsAreOutOfSight(t *testing.T) {
	var images []image
	for i := range 24 {
		images = append(images, image{Name: fmt.Sprintf("image%02d", i), Title: "Image"})
	}
	for _, envs := range [][]environment{nil, {{ID: "e1", Name: "mine", Image: "image00", State: "running"}}} {
		for height := 10; height < 40; height++ {
			p := newPicker(english, "alice", images, envs)
			p.height = height
			total := len(p.rows())
			for p.at = range total {
				shown, told, cursor := 0, 0, false
				for line := range strings.Lines(ansi.Strip(p.View().Content)) {
					var n int
					switch line = strings.TrimSpace(line); {
					case strings.HasSuffix(line, " more"):
						if _, err := fmt.Sscanf(strings.TrimLeft(line, "↑↓ "), "%d more", &n); err != nil {
							t.Fatal(line, err)
						}
						told += n
					case strings.HasPrefix(line, "❯ "+p.current().name()+" "):
						cursor = true
						shown++
					case strings.HasPrefix(line, "image"), strings.HasPrefix(line, "mine"):
						shown++
					}
				}
				if !cursor || shown+told != total {
					t.Fatalf("height %d, cursor at %d: %d shown, %d told of, of %d; cursor in sight: %v\n%s", height, p.at, shown, told, total, cursor, p.View().Content)
				}
			}
		}
	}
}
