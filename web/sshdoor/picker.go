package sshdoor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

// title is an image's name for people.
func (i image) title(w words) string {
	if w.chinese && i.TitleZh != "" {
		return i.TitleZh
	}
	return i.Title
}

// about is an image's description.
func (i image) about(w words) string {
	if w.chinese && i.DescriptionZh != "" {
		return i.DescriptionZh
	}
	return i.Description
}

// row is one line of the picker: an image, or a machine.
type row struct {
	image *image
	env   *environment
}

func (r row) name() string {
	if r.env != nil {
		return r.env.label()
	}
	return r.image.Name
}

func (r row) matches(filter string) bool {
	if filter == "" {
		return true
	}
	texts := []string{r.name()}
	if r.image != nil {
		texts = append(texts, r.image.Title, r.image.TitleZh)
	} else {
		texts = append(texts, r.env.ID, r.env.Image)
	}
	return slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(strings.ToLower(s), filter) })
}

// Messages to the picker.
type (
	envMsg    environment     // an environment as it is now
	envsMsg   map[string]bool // the ids of all environments there are
	noticeMsg string          // something to tell
)

// picker is the list a person chooses from.
type picker struct {
	w       words
	user    string
	images  []image
	envs    []environment
	filter  string
	at      int // index into rows()
	confirm *environment
	notice  string
	width   int
	height  int
	remove  func(environment) tea.Cmd
	leave   func() // called before quitting: input after this belongs to somebody else
	chosen  *row
}

func newPicker(w words, user string, images []image, envs []environment) *picker {
	p := &picker{w: w, user: user, images: images, width: 80, height: 24, leave: func() {}}
	for _, e := range envs {
		p.see(e)
	}
	p.at = p.firstImage()
	return p
}

// rows are the machines and then the images that pass the filter.
func (p *picker) rows() []row {
	var out []row
	for i := range p.envs {
		if r := (row{env: &p.envs[i]}); r.matches(p.filter) {
			out = append(out, r)
		}
	}
	for i := range p.images {
		if r := (row{image: &p.images[i]}); r.matches(p.filter) {
			out = append(out, r)
		}
	}
	return out
}

// firstImage is where the cursor starts: on what a newcomer wants, and where no letter deletes anything.
func (p *picker) firstImage() int {
	rows := p.rows()
	for i, r := range rows {
		if r.image != nil {
			return i
		}
	}
	return 0
}

func (p *picker) current() *row {
	if rows := p.rows(); p.at >= 0 && p.at < len(rows) {
		return &rows[p.at]
	}
	return nil
}

// see takes in what became of an environment, and keeps the cursor on the row it was on.
func (p *picker) see(e environment) {
	on := ""
	if r := p.current(); r != nil {
		on = r.key()
	}
	i := slices.IndexFunc(p.envs, func(o environment) bool { return o.ID == e.ID })
	switch {
	case e.ended() && i >= 0:
		p.envs = slices.Delete(p.envs, i, i+1)
		if p.confirm != nil && p.confirm.ID == e.ID {
			p.confirm = nil
		}
	case e.ended():
	case i >= 0:
		p.envs[i] = e
	default:
		p.envs = append(p.envs, e)
	}
	p.putCursor(on)
}

func (r row) key() string {
	if r.env != nil {
		return "e" + r.env.ID
	}
	return "i" + r.image.Name
}

func (p *picker) putCursor(key string) {
	rows := p.rows()
	for i, r := range rows {
		if r.key() == key {
			p.at = i
			return
		}
	}
	p.at = max(0, min(p.at, len(rows)-1))
}

// Init starts nothing: everything comes from outside.
func (p *picker) Init() tea.Cmd { return nil }

// Update takes keys and news.
func (p *picker) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		p.width, p.height = max(msg.Width, 20), max(msg.Height, 8)
	case envMsg:
		p.see(environment(msg))
	case envsMsg:
		for _, e := range slices.Clone(p.envs) {
			if !msg[e.ID] {
				e.State = "deleted"
				p.see(e)
			}
		}
	case noticeMsg:
		p.notice = string(msg)
	case tea.PasteMsg:
		p.setFilter(p.filter + clean(msg.Content))
	case tea.KeyPressMsg:
		return p, p.key(msg)
	}
	return p, nil
}

func (p *picker) quit() tea.Cmd {
	p.leave()
	return tea.Quit
}

func (p *picker) key(k tea.KeyPressMsg) tea.Cmd {
	p.notice = ""
	if p.confirm != nil {
		env := *p.confirm
		p.confirm = nil
		switch k.String() {
		case "y", "Y":
			p.notice = fmt.Sprintf(p.w.deleting, env.label())
			return p.remove(env)
		case "ctrl+c":
			return p.quit()
		}
		return nil
	}
	rows := p.rows()
	r := p.current()
	switch k.String() {
	case "ctrl+c", "ctrl+d":
		return p.quit()
	case "up", "ctrl+p", "shift+tab":
		p.at = max(0, p.at-1)
	case "down", "ctrl+n":
		p.at = max(0, min(len(rows)-1, p.at+1))
	case "home", "pgup":
		p.at = 0
	case "end", "pgdown":
		p.at = max(0, len(rows)-1)
	case "tab":
		p.complete(rows)
	case "enter":
		if r != nil {
			p.chosen = r
			return p.quit()
		}
	case "esc", "ctrl+u":
		p.setFilter("")
	case "backspace", "ctrl+h":
		if runes := []rune(p.filter); len(runes) > 0 {
			p.setFilter(string(runes[:len(runes)-1]))
		}
	case "delete", "ctrl+x":
		if r != nil && r.env != nil {
			p.confirm = r.env
		}
	default:
		text := clean(k.Text)
		switch {
		case text == "":
		case text == "q" && p.filter == "":
			return p.quit()
		case text == "d" && p.filter == "" && r != nil && r.env != nil:
			p.confirm = r.env
		default:
			p.setFilter(p.filter + text)
		}
	}
	return nil
}

// clean keeps what can be part of a name.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return -1
		}
		return r
	}, s)
}

// setFilter narrows the list. The cursor goes to the best match: a name that is the filter, then one that begins with it.
func (p *picker) setFilter(f string) {
	p.filter = strings.ToLower(ansi.Truncate(f, 64, ""))
	if p.filter == "" {
		p.at = p.firstImage()
		return
	}
	best, rank := 0, 9
	for i, r := range p.rows() {
		n := 2
		if name := strings.ToLower(r.name()); name == p.filter {
			n = 0
		} else if strings.HasPrefix(name, p.filter) {
			n = 1
		}
		if r.env != nil { // an image before a machine that was named after it
			n += 3
		}
		if n < rank {
			best, rank = i, n
		}
	}
	p.at = best
}

// complete lengthens the filter to what all names that begin with it have in common; when nothing more is common, it takes
// the name under the cursor.
func (p *picker) complete(rows []row) {
	common, found := "", false
	for _, r := range rows {
		name := strings.ToLower(r.name())
		if !strings.HasPrefix(name, p.filter) || r.image == nil {
			continue
		}
		if !found {
			common, found = name, true
			continue
		}
		n := 0
		for n < len(common) && n < len(name) && common[n] == name[n] {
			n++
		}
		common = common[:n]
	}
	if found && len(common) > len(p.filter) {
		p.setFilter(strings.ToValidUTF8(common, ""))
	} else if r := p.current(); r != nil {
		p.setFilter(strings.ToLower(r.name()))
	}
}

var (
	bold    = lipgloss.NewStyle().Bold(true)
	faint   = lipgloss.NewStyle().Faint(true)
	accent  = lipgloss.NewStyle().Foreground(lipgloss.Cyan).Bold(true)
	warning = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
)

// View draws the list into the window, scrolled so that the cursor is in it.
func (p *picker) View() tea.View {
	var top, lines []string
	var isRow []bool // of each line; the others are headings
	top = append(top, bold.Render(fmt.Sprintf(p.w.welcome, p.user)), "")
	rows := p.rows()
	cursorLine := 0
	section := ""
	for i, r := range rows {
		if s := p.section(r); s != section {
			if section != "" {
				lines, isRow = append(lines, ""), append(isRow, false)
			}
			section = s
			lines, isRow = append(lines, faint.Render(s)), append(isRow, false)
		}
		line := p.line(r)
		if i == p.at {
			cursorLine = len(lines)
			line = accent.Render("❯ ") + line
		} else {
			line = "  " + line
		}
		lines, isRow = append(lines, line), append(isRow, true)
	}
	if len(rows) == 0 {
		lines = append(lines, faint.Render(p.w.noMatch))
	}
	bottom := []string{""}
	switch {
	case p.confirm != nil:
		bottom = append(bottom, warning.Render(fmt.Sprintf(p.w.confirm, p.confirm.label())))
	case p.notice != "":
		bottom = append(bottom, warning.Render(printable(p.notice)))
	default:
		bottom = append(bottom, p.w.filter+": "+p.filter+accent.Render("▏"))
	}
	help := p.w.help
	if r := p.current(); r != nil && r.env != nil {
		help = p.w.helpEnv
	}
	bottom = append(bottom, faint.Render(help))

	room := max(1, p.height-len(top)-len(bottom))
	if len(lines) > room {
		from := min(max(0, cursorLine-room/2), len(lines)-room)
		lines = p.window(lines, isRow, from, from+room)
	}
	all := slices.Concat(top, lines, bottom)
	for i, l := range all {
		all[i] = ansi.Truncate(l, p.width, "…")
	}
	v := tea.NewView(strings.Join(all, "\n"))
	v.AltScreen = true
	v.WindowTitle = "Learnos"
	return v
}

// window is the part of lines that is shown. Where rows are out of sight, its first or last line says how many.
func (p *picker) window(lines []string, isRow []bool, from, to int) []string {
	out := slices.Clone(lines[from:to])
	if len(out) < 5 {
		return out // too low for more than the row under the cursor and its neighbours
	}
	hidden := func(of []bool) (n int) {
		for _, row := range of {
			if row {
				n++
			}
		}
		return n
	}
	if n := hidden(isRow[:from+1]); from > 0 && n > 0 {
		out[0] = faint.Render(fmt.Sprintf("  ↑ "+p.w.more, n))
	}
	if n := hidden(isRow[to-1:]); to < len(lines) && n > 0 {
		out[len(out)-1] = faint.Render(fmt.Sprintf("  ↓ "+p.w.more, n))
	}
	return out
}

func (p *picker) section(r row) string {
	if r.env != nil {
		return p.w.environments
	}
	return p.w.images
}

// line is a row without its cursor.
func (p *picker) line(r row) string {
	pad := func(s string, n int) string { return s + strings.Repeat(" ", max(1, n-ansi.StringWidth(s))) }
	if r.env != nil {
		state := p.w.states[r.env.State]
		if r.env.State == "queued" || r.env.State == "pulling" || r.env.State == "creating" {
			state = stageLine(p.w, *r.env)
		}
		return pad(printable(r.name()), 24) + pad(printable(r.env.Image), 18) + faint.Render(printable(state))
	}
	return pad(printable(r.name()), 24) + pad(printable(r.image.title(p.w)), 18) + faint.Render(printable(r.image.about(p.w)))
}

// newlineWriter makes each line end into what a terminal in raw mode needs.
type newlineWriter struct{ w io.Writer }

func (n newlineWriter) Write(b []byte) (int, error) {
	if _, err := n.w.Write(bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// choose shows the picker until the person has chosen; nil when they left without.
func (v *visit) choose(c *channel, w words) (*row, error) {
	images, err := v.p.images(c.ctx)
	if err != nil {
		return nil, err
	}
	envs, err := v.p.environments(c.ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	stop := make(chan struct{})
	m := newPicker(w, v.login.User, images, envs)
	m.leave = func() { close(stop) }
	m.remove = func(e environment) tea.Cmd {
		return func() tea.Msg {
			if err := v.p.remove(ctx, e.ID); err != nil {
				return noticeMsg(w.notice(err))
			}
			e.State = "deleted"
			return envMsg(e)
		}
	}
	cols, rows := c.size()
	// SSH_TTY tells the library that this is remote: it then asks the terminal no questions, whose answers would be
	// typed into the shell that comes next.
	vars := append(c.environment(), "SSH_TTY=/dev/pts/0")
	prog := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(c.in.reader(stop)), tea.WithOutput(newlineWriter{c}),
		tea.WithEnvironment(vars), tea.WithWindowSize(cols, rows), tea.WithoutSignalHandler(), tea.WithFPS(30))
	go v.feedPicker(ctx, w, prog)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.resized:
				cols, rows := c.size()
				prog.Send(tea.WindowSizeMsg{Width: cols, Height: rows})
			}
		}
	}()
	_, err = prog.Run()
	if m.chosen != nil || errors.Is(err, tea.ErrProgramKilled) && c.ctx.Err() != nil {
		err = nil
	}
	return m.chosen, err
}

// feedPicker keeps the list of machines as it is now.
func (v *visit) feedPicker(ctx context.Context, w words, prog *tea.Program) {
	err := v.p.watch(ctx, func() error {
		envs, err := v.p.environments(ctx)
		if err != nil {
			return err
		}
		ids := envsMsg{}
		for _, e := range envs {
			ids[e.ID] = true
		}
		prog.Send(ids)
		return nil
	}, func(e environment) { prog.Send(envMsg(e)) })
	if err != nil && ctx.Err() == nil {
		prog.Send(noticeMsg(w.notice(err)))
	}
}

// pick lets a person choose and gives them what they chose; the machine stays when they leave it.
func (v *visit) pick(c *channel, w words) int {
	r, err := v.choose(c, w)
	if err != nil {
		return v.fail(c, w, err, exitDoor)
	}
	if r == nil {
		return 0
	}
	var env environment
	if r.env != nil {
		env = *r.env
	} else if env, err = v.p.create(context.WithoutCancel(c.ctx), r.image.Name); err != nil {
		return v.fail(c, w, err, exitDoor)
	}
	began := time.Now()
	if env, err = v.await(c, w, env); err != nil {
		if errors.Is(err, errCancelled) && r.image != nil {
			v.door.background(func(ctx context.Context) { _ = v.p.remove(ctx, env.ID) })
		}
		return v.fail(c, w, err, exitDoor)
	}
	existing := ""
	if r.env != nil {
		existing = v.openShell(c.ctx, env.ID)
	}
	if existing != "" {
		v.say(c, w.back)
	} else {
		v.say(c, fmt.Sprintf("%s · %s · %d ms", env.label(), w.ready, time.Since(began).Milliseconds()))
	}
	code := v.session(c, w, env, existing, c.in)
	if code != exitDoor {
		v.say(c, fmt.Sprintf(w.stays, env.label()))
		v.say(c, fmt.Sprintf(w.goThere, v.address("ssh", env.label()))) // in a line of its own, to be copied
	}
	return code
}

// openShell finds the newest terminal that is still open in a machine: where a person left off when their
// connection broke. "" when there is none.
func (v *visit) openShell(ctx context.Context, env string) string {
	sessions, err := v.p.sessions(ctx, env)
	if err != nil {
		return ""
	}
	newest := sessionInfo{}
	for _, s := range sessions {
		if s.TTY && !s.Exited && (newest.ID == "" || s.CreatedAt.After(newest.CreatedAt)) {
			newest = s
		}
	}
	return newest.ID
}
