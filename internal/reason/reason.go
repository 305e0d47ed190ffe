// Package reason holds why an environment waits or has ended, as nodes, the queue and the gateway say it: each reason
// is a sentence for people, and a code with values for who says it in another language.
//
// Only the sentence travels and is kept (in etcd, in SQL, on nodes); Parse finds the code and the values in it again. What
// has no code is an error's own text. The package knows no other and does nothing.
package reason

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// Code names a reason. It is part of the API: a code keeps its meaning.
type Code string

// The reasons there are.
const (
	Lifetime     Code = "lifetime"
	Idle         Code = "idle"
	NetQuota     Code = "net_quota"
	BlkQuota     Code = "blk_quota"
	MemoryLimit  Code = "memory_limit"
	OutOfMemory  Code = "out_of_memory"
	SocketMemory Code = "socket_memory"
	FirstProcess Code = "first_process"
	WhileAway    Code = "while_away"
	NodeForgot   Code = "node_forgot"
	BadJob       Code = "bad_job"
	TooLong      Code = "too_long"
	WhileMade    Code = "deleted_while_made"
	BeforeRun    Code = "deleted_before_running"
	ByOwner      Code = "deleted_by_owner"
	AskedFor     Code = "asked_for"
	PutAway      Code = "put_away"
	GivenUp      Code = "given_up"
	NotDeleted   Code = "not_deleted"
	NodeLost     Code = "node_lost"
	NodeRemoves  Code = "node_removes"
	NodeAway     Code = "node_away"
	QueueAway    Code = "queue_away"
	NoNode       Code = "no_node"
	SoonTaken    Code = "soon_taken"
	NodesFull    Code = "nodes_full"
	NoMemory     Code = "no_memory"
	NoDisk       Code = "no_disk"
	NoMemoryHigh Code = "no_memory_high"
	NoDiskRates  Code = "no_disk_rates"
	NoDiskLimit  Code = "no_disk_limit"
)

// sentences are in the order in which Parse tries them.
var sentences = []struct {
	code Code
	text string // with a {name} for each value
}{
	{Lifetime, "lifetime"},
	{Idle, "idle"},
	{NetQuota, "network traffic passed its quota of {quota}"},
	{BlkQuota, "disk traffic passed its quota of {quota}"},
	{MemoryLimit, "it ran out of memory: {limit} is its limit; use less, or ask for an image with more"},
	{OutOfMemory, "it ran out of memory"},
	{SocketMemory, "its sockets held {held} of the kernel's memory, beyond its memory limit of {limit}: accept connections and read what arrives"},
	{FirstProcess, "its first process ended"},
	{WhileAway, "it ended while the node's agent was away"},
	{NodeForgot, "its node no longer has it: start a new one"},
	{BadJob, "the job was malformed"},
	{TooLong, "it took too long: {cause}"},
	{WhileMade, "deleted while it was being made"},
	{BeforeRun, "deleted before it was running"},
	{ByOwner, "deleted by its owner"},
	{AskedFor, "asked for"},
	{PutAway, "put away: {cause}"},
	{GivenUp, "given up after {n} attempts: {cause}"},
	{NotDeleted, "could not be deleted in {n} attempts: {cause}"},
	{NodeLost, "node {node} was lost while working on it"},
	{NodeRemoves, "given up; its node removes it when it is back"},
	{NodeAway, "its node is away and removes it when it is back"},
	{QueueAway, "the queue does not answer; it goes on when it is back"},
	{NoNode, "no node is online"},
	{SoonTaken, "a node will take it in a moment"},
	{NodesFull, "no node has room: each holds as many environments as it may"},
	{NoMemory, "no node has room: needs {needed} of memory, at most {free} are free"},
	{NoDisk, "no node has room: out of disk; needs {needed}, at most {free} can still be promised"},
	{NoMemoryHigh, "no node can give its soft memory limit, which needs cgroup v2: boot a node with systemd.unified_cgroup_hierarchy=1, or set the image's memoryHighBytes to 0"},
	{NoDiskRates, "no node can hold it to its disk rates: {cause}; mend that, or set the image's rates to 0"},
	{NoDiskLimit, "no node can hold it to its disk limit: {cause}; mend that, or set the image's diskBytes to 0"},
}

// Codes lists all codes.
func Codes() []Code {
	var all []Code
	for _, s := range sentences {
		all = append(all, s.code)
	}
	return all
}

var placeholder = regexp.MustCompile(`\{(\w+)\}`)

// Values are the names of a code's values, in the order of its sentence.
func Values(c Code) []string {
	var names []string
	for _, m := range placeholder.FindAllStringSubmatch(sentence(c), -1) {
		names = append(names, m[1])
	}
	return names
}

func sentence(c Code) string {
	for _, s := range sentences {
		if s.code == c {
			return s.text
		}
	}
	panic("reason: no such code: " + string(c)) // a constant of this package is in the table; its test holds it to that
}

// Say is the sentence of c with its values, in their order.
func Say(c Code, values ...any) string {
	return placeholder.ReplaceAllStringFunc(sentence(c), func(name string) string {
		if len(values) == 0 {
			return name
		}
		v := values[0]
		values = values[1:]
		return fmt.Sprint(v)
	})
}

// patterns are the sentences as expressions that match them whole.
var patterns = sync.OnceValue(func() []*regexp.Regexp {
	var all []*regexp.Regexp
	for _, s := range sentences {
		var parts []string
		for _, part := range placeholder.Split(s.text, -1) {
			parts = append(parts, regexp.QuoteMeta(part))
		}
		all = append(all, regexp.MustCompile("(?s)^"+strings.Join(parts, "(.+?)")+"$"))
	}
	return all
})

// Parse finds what Say made text of; "" when it is somebody else's sentence.
func Parse(text string) (Code, map[string]string) {
	values := map[string]string{}
	for i, p := range patterns() {
		m := p.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		for j, name := range Values(sentences[i].code) {
			values[name] = m[j+1]
		}
		return sentences[i].code, values
	}
	return "", values
}
