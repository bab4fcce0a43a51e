// A crowd of LiveKit participants in one process: real publishers that cost next to nothing, and clients that cheat.
//
// Standard input has one request a line, {"request": 1, "op": "join", "member": 0, "arguments": {…}}; standard output has
// an answer to each, {"request": 1, …}, in which "error" and "message" say what went wrong, and what members are told,
// {"event": "mute", "member": 0, "at": …, …}. When standard input ends, everybody leaves. crowd.py speaks it.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	answerWithin = 10 * time.Second
	leaveWithin  = 2 * time.Second
	longestLine  = 1 << 20
	linesAhead   = 1 << 16 // members read their sockets even while nobody reads what we write
)

type fields map[string]any

// What the one who asked is told as a Python exception of this kind.
type failure struct{ kind, message string }

func (f failure) Error() string { return f.message }

type request struct {
	Request   int    `json:"request"`
	Op        string `json:"op"`
	Member    int    `json:"member"`
	Arguments struct {
		options
		TrackSid string `json:"track_sid"`
		Muted    bool   `json:"muted"`
	} `json:"arguments"`
}

type crowd struct {
	lines   chan []byte
	mutex   sync.Mutex
	members map[int]*member
	streams map[int]*stream
}

func main() {
	log.SetFlags(0)
	runtime.GOMAXPROCS(1) // with more we take LiveKit's core, which then loses clients in bursts; waking threads costs us as much
	c := &crowd{lines: make(chan []byte, linesAhead), members: map[int]*member{}, streams: map[int]*stream{}}
	go func() {
		for line := range c.lines {
			_, err := os.Stdout.Write(line)
			must(err)
		}
	}()
	go playAll()
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, longestLine)
	for input.Scan() {
		var asked request
		must(json.Unmarshal(input.Bytes(), &asked))
		go c.answer(asked)
	}
	must(input.Err())
	c.everybodyLeaves()
}

func (c *crowd) answer(asked request) {
	answer := fields{"request": asked.Request}
	tracks, err := c.do(asked)
	answer["tracks"] = tracks
	if err != nil {
		answer["error"], answer["message"] = "ParticipantError", err.Error()
		if failed, ok := errors.AsType[failure](err); ok {
			answer["error"] = failed.kind
		}
	}
	c.write(answer)
}

func (c *crowd) do(asked request) ([]string, error) {
	c.mutex.Lock()
	m, s := c.members[asked.Member], c.streams[asked.Member]
	c.mutex.Unlock()
	switch {
	case asked.Op == "stream":
		return nil, c.stream(asked.Member, asked.Arguments.options)
	case s != nil && asked.Op == "leave":
		return nil, s.leave()
	}
	if asked.Op == "join" {
		if m != nil {
			m.leave()
		}
		return c.join(asked.Member, asked.Arguments.options)
	}
	if m == nil {
		return nil, fmt.Errorf("member %d never joined", asked.Member)
	}
	switch asked.Op {
	case "publish":
		return m.publish(asked.Arguments.Publish)
	case "unpublish":
		return nil, m.unpublish(asked.Arguments.TrackSid)
	case "mute":
		m.mute(asked.Arguments.TrackSid, asked.Arguments.Muted)
	case "leave":
		m.leave()
	default:
		return nil, fmt.Errorf("there is no operation %q", asked.Op)
	}
	return nil, nil
}

func (c *crowd) everybodyLeaves() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	time.AfterFunc(leaveWithin, func() { os.Exit(0) }) // the media server may be gone
	var leaving sync.WaitGroup
	for _, m := range c.members {
		leaving.Go(m.leave)
	}
	for _, s := range c.streams {
		leaving.Go(func() {
			if err := s.leave(); err != nil {
				log.Printf("stream %d: %v", s.number, err)
			}
		})
	}
	leaving.Wait()
}

func (c *crowd) write(line fields) {
	encoded, err := json.Marshal(line)
	must(err)
	c.lines <- append(encoded, '\n')
}

// What Python calls time.monotonic.
func monotonic() float64 {
	var now unix.Timespec
	must(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return float64(now.Nano()) / 1e9
}
