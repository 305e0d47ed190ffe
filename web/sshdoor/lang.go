package sshdoor

import (
	"fmt"
	"strings"
	"time"
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
	hint, cancelled string

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
	states: map[string]string{"queued": "排队中", "pulling": "获取镜像", "creating": "创建中", "running": "运行中",
		"stopping": "停止中", "deleted": "已删除", "failed": "失败", "overstep": "超出配额"},
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
