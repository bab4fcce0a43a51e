package main

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/livekit/protocol/livekit"
	"github.com/pion/webrtc/v4"
)

const toldEvery = 100 * time.Millisecond

// Takes note of whose tone comes in. What somebody sends who is muted does not get here; nothing is decoded.
func (m *member) listen(others []*livekit.ParticipantInfo) {
	for _, other := range others {
		m.know(other)
	}
	m.subscriber.OnTrack(func(remote *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		sid, _, _ := strings.Cut(remote.StreamID(), "|")
		for {
			packet, _, err := remote.ReadRTP()
			if err != nil {
				return
			}
			if bytes.Equal(packet.Payload, tone) {
				m.mutex.Lock()
				m.heard[m.identities[sid]] = true
				m.mutex.Unlock()
			}
		}
	})
	go m.tellWhoIsHeard()
}

func (m *member) know(other *livekit.ParticipantInfo) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.identities[other.Sid] = other.Identity
}

func (m *member) tellWhoIsHeard() {
	ticker := time.NewTicker(toldEvery)
	defer ticker.Stop()
	for {
		select {
		case <-m.done:
			return
		case <-ticker.C:
		}
		m.mutex.Lock()
		heard := slices.Sorted(maps.Keys(m.heard))
		clear(m.heard)
		m.mutex.Unlock()
		if len(heard) > 0 {
			m.tell("heard", fields{"identities": heard})
		}
	}
}
