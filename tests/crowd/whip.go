package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/pion/webrtc/v4"
)

// What somebody streams in by WHIP: published once, by one request. LiveKit tells them nothing after its answer, no sid of a track either.
type stream struct {
	options
	crowd    *crowd
	number   int
	media    *webrtc.PeerConnection
	resource string // what is deleted in the end
	tracks   []*track
	ended    chan struct{} // closed when the media have, whoever ended them
}

// Returns when LiveKit takes the media, whatever it makes of them.
func (c *crowd) stream(number int, o options) error {
	connection, err := api.NewPeerConnection(configuration)
	must(err)
	s := &stream{options: o, crowd: c, number: number, media: connection, ended: make(chan struct{})}
	if err := s.begin(); err != nil {
		return errors.Join(err, connection.Close())
	}
	c.mutex.Lock()
	c.streams[number] = s
	c.mutex.Unlock()
	return nil
}

func (s *stream) begin() error {
	for _, published := range s.Publish {
		published.cid = rand.Text()
		t := newTrack(published, published.cid)
		sendOnly := webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}
		if _, err := s.media.AddTransceiverFromTrack(t.local, sendOnly); err != nil {
			return err
		}
		s.tracks = append(s.tracks, t)
	}
	connected := make(chan struct{})
	connectedOnce, endedOnce := sync.OnceFunc(func() { close(connected) }), sync.OnceFunc(s.end)
	s.media.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		switch state {
		case webrtc.PeerConnectionStateConnected:
			connectedOnce()
		case webrtc.PeerConnectionStateFailed, webrtc.PeerConnectionStateClosed:
			endedOnce()
		}
	})
	for _, t := range s.tracks {
		startPlaying(t)
	}
	offer, err := s.media.CreateOffer(nil)
	if err != nil {
		return err
	}
	gathered := webrtc.GatheringCompletePromise(s.media)
	if err := s.media.SetLocalDescription(offer); err != nil {
		return err
	}
	<-gathered
	created, answer, err := s.ask(http.MethodPost, "/whip/v1", s.media.LocalDescription().SDP)
	if err != nil {
		return failure{"JoinRefused", err.Error()}
	}
	s.resource = created.Get("Location")
	sid := s.resource[strings.LastIndex(s.resource, "/")+1:]
	s.tell("joined", fields{"sid": sid})
	if err := s.media.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answer}); err != nil {
		return err
	}
	waiting, stop := context.WithTimeout(context.Background(), answerWithin)
	defer stop()
	select {
	case <-connected:
		return nil
	case <-s.ended:
		return errEnded
	case <-waiting.Done():
		return errors.New("LiveKit did not connect in time")
	}
}

func (s *stream) ask(method, path, body string) (http.Header, string, error) {
	waiting, stop := context.WithTimeout(context.Background(), answerWithin)
	defer stop()
	address := strings.Replace(s.URL, "ws", "http", 1) + path
	request, err := http.NewRequestWithContext(waiting, method, address, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	request.Header = http.Header{"Authorization": {"Bearer " + s.Token}, "Content-Type": {"application/sdp"}}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("%d: %s", response.StatusCode, answer)
	}
	return response.Header, string(answer), err
}

// Does nothing when LiveKit has ended it.
func (s *stream) leave() error {
	select {
	case <-s.ended:
		return nil
	default:
		_, _, err := s.ask(http.MethodDelete, s.resource, "")
		return errors.Join(err, s.media.Close())
	}
}

func (s *stream) end() {
	for _, t := range s.tracks {
		stopPlaying(t)
	}
	close(s.ended)
	s.tell("ended", fields{})
}

func (s *stream) tell(event string, told fields) {
	told["event"], told["member"], told["at"] = event, s.number, monotonic()
	s.crowd.write(told)
}
