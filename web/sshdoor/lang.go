package sshdoor

import (
	"errors"
	"fmt"
	"strings"
	"time"

	zh "github.com/learnos/learnos/web/words"
)

// words are everything the door says to a person, in one language.
type words struct {
	// the picker
	welcome, images, environments, none, filter, help, helpEnv, confirm, deleting, noMatch, more string
	// an environment that comes up, and what becomes of it afterwards
	queued, queuedAt, pulling, creating, ready, stays, gone, back string
	// what is said of a machine that stays because files were copied into it, put together in this order
	uploaded, untilIdle, untilLatest, stop, goThere string
	// what went wrong
	hint, cancelled, whichMachine, nameIt, whichFiles, nameRunning, unknown, noImages, imagesAre, goneNow, noShell, away, tryAgain string

	states  map[string]string
	chinese bool
}

var english = words{
	welcome:      "Welcome to Learnos, %s",
	images:       "Start a new machine",
	environments: "Your machines",
	none:         "none is running",
	filter:       "filter",
	help:         "↑↓ move · type to filter · Tab completes · Enter starts · q quits",
	helpEnv:      "↑↓ move · Enter opens · d or Del deletes · type to filter · q quits",
	confirm:      "Delete %s and everything in it? y/N",
	deleting:     "deleting %s…",
	noMatch:      "nothing is called like that; Backspace widens the search",
	more:         "%d more",
	queued:       "waiting for room on a node",
	queuedAt:     "waiting for room on a node, %d before you",
	pulling:      "fetching the image",
	creating:     "creating",
	ready:        "ready",
	stays:        "%s keeps running until it is idle.",
	gone:         "%s ends with this shell",
	back:         "back in the shell that was left open",
	uploaded:     "%s has your files and stays",
	untilIdle:    " until nobody has been connected for %s",
	untilLatest:  ", for %s at most",
	stop:         ".",
	goThere:      "Go there with: %s",
	hint:         "what to do",
	cancelled:    "cancelled",
	whichMachine: "Which machine is that command for?",
	nameIt:       "Name an image or a running machine in the login: %s",
	whichFiles:   "Which machine are the files in?",
	nameRunning:  "Name a running machine in the login: %s",
	unknown:      "No image and none of your machines is called %q.",
	noImages:     "There are no images yet: an administrator adds them in the panel.",
	imagesAre:    "Images are: %s.",
	goneNow:      "The machine %s is gone (%s).",
	noShell:      "This machine has no shell that could serve files: %v",
	away:         "The Learnos gateway does not answer.",
	tryAgain:     "Try again in a moment.",
	states: map[string]string{"queued": "queued", "pulling": "fetching", "creating": "creating", "running": "running",
		"stopping": "stopping", "deleted": "deleted", "failed": "failed", "overstep": "over quota"},
}

var chinese = words{
	chinese:      true,
	welcome:      "欢迎来到 Learnos，%s",
	images:       "新建一台机器",
	environments: "你的机器",
	none:         "没有正在运行的",
	filter:       "筛选",
	help:         "↑↓ 移动 · 输入文字筛选 · Tab 补全 · 回车启动 · q 退出",
	helpEnv:      "↑↓ 移动 · 回车打开 · d 或 Del 删除 · 输入文字筛选 · q 退出",
	confirm:      "删除 %s 及其全部内容？ y/N",
	deleting:     "正在删除 %s…",
	noMatch:      "没有匹配的名称；按退格键放宽筛选",
	more:         "还有 %d 个",
	queued:       "正在等待节点空位",
	queuedAt:     "正在等待节点空位，前面还有 %d 个",
	pulling:      "正在获取镜像",
	creating:     "正在创建",
	ready:        "就绪",
	stays:        "%s 会继续运行，直到闲置。",
	gone:         "退出后 %s 即被删除",
	back:         "已回到之前未关闭的终端",
	uploaded:     "%s 里有你的文件，会保留下来",
	untilIdle:    "，直到 %s无人连接",
	untilLatest:  "，最长 %s",
	stop:         "。",
	goThere:      "进入命令：%s",
	hint:         "建议",
	cancelled:    "已取消",
	whichMachine: "要在哪台机器上运行这条命令？",
	nameIt:       "请在登录名里写上镜像或正在运行的机器：%s",
	whichFiles:   "文件在哪台机器上？",
	nameRunning:  "请在登录名里写上正在运行的机器：%s",
	unknown:      "没有叫 %q 的镜像，你的机器里也没有。",
	noImages:     "还没有镜像，管理员可以在面板里添加。",
	imagesAre:    "镜像有：%s。",
	goneNow:      "机器 %s 已不在（%s）。",
	noShell:      "这台机器没有可以用来传文件的 shell：%v",
	away:         "Learnos 网关没有应答。",
	tryAgain:     "请稍后再试。",
	states: map[string]string{"queued": "排队中", "pulling": "获取镜像", "creating": "创建中", "running": "运行中",
		"stopping": "停止中", "deleted": "已删除", "failed": "失败", "overstep": "超出配额"},
}

// explain says what went wrong and, where that is known, what to do.
func (w words) explain(err error) (message, hint string) {
	var api *apiError
	var over *endedError
	switch {
	case errors.As(err, &over):
		e := over.env
		if message = w.reason(e); message == "" {
			message = over.Error()
			if w.chinese {
				message = "环境" + w.states[e.State] + "。"
			}
		}
		return message, w.stateHint(e)
	case w.chinese && errors.Is(err, ErrLoginTarget):
		return "登录名里 + 后面必须是镜像或环境的名称：字母、数字和 . _ : -，最多 63 个字符。", ""
	case !errors.As(err, &api):
		return err.Error(), ""
	case w.chinese && !api.own:
		return zh.Problem(api.Code, api.Field, api.Message, api.Hint)
	}
	return api.Message, api.Hint
}

// notice is an error in one line.
func (w words) notice(err error) string {
	message, hint := w.explain(err)
	return strings.TrimSpace(message + " " + hint)
}

// reason is why a machine waits or has ended.
func (w words) reason(e environment) string {
	if w.chinese {
		return zh.Reason(e.ReasonCode, e.ReasonValues, e.Reason)
	}
	return e.Reason
}

// stateHint is what the gateway says to do about a machine's state.
func (w words) stateHint(e environment) string {
	if w.chinese {
		return zh.Hint(e.State, e.Hint)
	}
	return e.Hint
}

// span is a length of time in a person's words, rounded to what counts.
func (w words) span(d time.Duration) string {
	n, en, zh := int(d.Round(time.Second).Seconds()), "s", "秒"
	switch {
	case d >= 90*time.Minute:
		n, en, zh = int(d.Round(time.Hour).Hours()), "h", "小时"
	case d >= 90*time.Second:
		n, en, zh = int(d.Round(time.Minute).Minutes()), "min", "分钟"
	}
	if w.chinese {
		return fmt.Sprintf("%d %s", n, zh)
	}
	return fmt.Sprintf("%d %s", n, en)
}

// language picks by the locale variables that the client sent, in the order that POSIX gives them.
func language(env map[string]string) words {
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if v := env[name]; v != "" {
			if strings.HasPrefix(strings.ToLower(v), "zh") {
				return chinese
			}
			return english
		}
	}
	return english
}
