package main

import (
	"encoding/hex"
	"errors"
	"io"
	"log"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

// One frame of each, sent again and again.
var (
	// 20 ms of Opus out of a 450 Hz tone of amplitude 8,000, of which nine whole periods fit: encoded by libopus with
	// application=voip, vbr=off, 12 kbit/s and mono, frame 40 of that. Repeated it decodes to the tone, with an RMS of 5,660.
	tone = bytesOf("483a8e91dc727123f7e4a33e4fe5544bd302624c58bbb3c83eac28987c84")
	// A key frame of VP8, 16 by 16 pixels, a grey ramp, encoded by libvpx; before it the descriptor that RTP wants.
	picture = bytesOf("10" + "f002009d012a1000100000470885858885848802020275aa03f8020cfc05ffa9a0fefffe789f8a537dffe3cb29" +
		"fdf47b3fa57f58bd5df0b6fff8e6df1cdbe39b7fc736ffdec17dd82fbb05feb600")
)

const (
	frameLength = 20 * time.Millisecond
	phases      = 4 // tracks take turns within a frame's length: all of them at once could overflow a socket's buffer
)

func bytesOf(digits string) []byte {
	decoded, err := hex.DecodeString(digits)
	must(err)
	return decoded
}

// What was asked for.
type publication struct {
	Source string `json:"source"`
	Type   string `json:"type"` // as declared
	Sound  bool   `json:"sound"`
	Muted  bool   `json:"muted"`
	cid    string
}

type track struct {
	publication
	sid    string
	local  *webrtc.TrackLocalStaticRTP
	sender *webrtc.RTPSender
	muted  atomic.Bool
	packet rtp.Packet // the player's own
	every  uint32     // so many frame lengths a packet
	ticks  uint32     // of the codec's clock in a frame length
	phase  int
}

func newTrack(published publication, sid string) *track {
	codec, payload, every := vp8, picture, uint32(10)
	if published.Sound {
		codec, payload, every = opus, tone, 1
	}
	local, err := webrtc.NewTrackLocalStaticRTP(codec, published.cid, published.cid)
	must(err)
	t := &track{
		publication: published, sid: sid, local: local, every: every, ticks: codec.ClockRate / uint32(time.Second/frameLength),
		packet: rtp.Packet{Header: rtp.Header{Version: 2, Marker: !published.Sound}, Payload: payload},
	}
	t.muted.Store(published.Muted)
	return t
}

// A muted one sends a little, as an encoder of silence does: LiveKit lists no track without media.
func (t *track) play(frame uint32) {
	every := t.every
	if t.muted.Load() {
		every = 20
	}
	if frame%every != 0 {
		return
	}
	t.packet.SequenceNumber++
	t.packet.Timestamp = frame * t.ticks
	if err := t.local.WriteRTP(&t.packet); err != nil && !errors.Is(err, io.ErrClosedPipe) { // closed in this moment
		log.Printf("track %s: %v", t.sid, err)
	}
}

var playing struct {
	mutex  sync.Mutex
	tracks [phases][]*track
}

func startPlaying(t *track) {
	playing.mutex.Lock()
	defer playing.mutex.Unlock()
	for phase, tracks := range playing.tracks {
		if len(tracks) < len(playing.tracks[t.phase]) {
			t.phase = phase
		}
	}
	playing.tracks[t.phase] = append(playing.tracks[t.phase], t)
}

func stopPlaying(t *track) {
	playing.mutex.Lock()
	defer playing.mutex.Unlock()
	playing.tracks[t.phase] = slices.DeleteFunc(playing.tracks[t.phase], func(other *track) bool { return other == t })
}

// Everybody's media, by one clock.
func playAll() {
	const step = frameLength / phases
	began, steps := time.Now(), 0
	for range time.Tick(step) {
		for ; time.Duration(steps)*step <= time.Since(began); steps++ {
			playing.mutex.Lock()
			for _, t := range playing.tracks[steps%phases] {
				t.play(uint32(steps / phases))
			}
			playing.mutex.Unlock()
		}
	}
}
