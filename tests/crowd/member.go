package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/livekit/protocol/livekit"
	"github.com/pion/webrtc/v4"
	"google.golang.org/protobuf/proto"
)

const protocol = 15

var (
	errEnded  = errors.New("the member's signaling has ended")
	updateTag = []byte{5<<3 | 2} // what a SignalResponse begins with when it is an update of participants
)

type options struct {
	URL             string        `json:"url"`
	Token           string        `json:"token"`
	PathQuery       string        `json:"path_query"`
	Publish         []publication `json:"publish"`
	AutoSubscribe   bool          `json:"auto_subscribe"`
	Compression     bool          `json:"compression"`
	AnswersOffers   bool          `json:"answers_offers"`
	UnmuteAlways    bool          `json:"unmute_always"`
	RepublishAlways bool          `json:"republish_always"`
	Watch           bool          `json:"watch"`
	Listens         bool          `json:"listens"`
}

// One session of somebody in a LiveKit room.
type member struct {
	options
	crowd      *crowd
	number     int
	sid        string
	permission *livekit.ParticipantPermission // the reader's own
	socket     *websocket.Conn
	publisher  *peer
	subscriber *peer
	negotiated chan error
	done       chan struct{} // closed when the signaling has ended

	writing      sync.Mutex
	negotiating  sync.Mutex
	republishing sync.Mutex
	takenAway    []publication // or refused; by republishing

	mutex  sync.Mutex // for all below
	asked  map[string]chan *livekit.SignalResponse
	tracks map[string]*track
	left   bool
	// By who listens: whose tone came in since it was told, and who is who by the ids of their sessions.
	heard      map[string]bool
	identities map[string]string
}

func (c *crowd) join(number int, o options) ([]string, error) {
	subscribe := 0
	if o.AutoSubscribe {
		subscribe = 1
	}
	address := fmt.Sprintf("%s/rtc?protocol=%d&sdk=go&auto_subscribe=%d&%s", o.URL, protocol, subscribe, o.PathQuery)
	dialer := websocket.Dialer{EnableCompression: o.Compression, HandshakeTimeout: answerWithin}
	socket, response, err := dialer.Dial(address, http.Header{"Authorization": {"Bearer " + o.Token}})
	if errors.Is(err, websocket.ErrBadHandshake) {
		words, _ := io.ReadAll(response.Body) // it was read before
		return nil, failure{"JoinRefused", fmt.Sprintf("%d: %s", response.StatusCode, words)}
	}
	if err != nil {
		return nil, failure{"JoinRefused", err.Error()}
	}
	m := &member{
		options: o, crowd: c, number: number, socket: socket, negotiated: make(chan error, 1), done: make(chan struct{}),
		asked: map[string]chan *livekit.SignalResponse{}, tracks: map[string]*track{},
		heard: map[string]bool{}, identities: map[string]string{},
	}
	socket.SetReadDeadline(time.Now().Add(answerWithin))
	first, err := m.next()
	if err != nil || first.GetJoin() == nil {
		return nil, failure{"JoinRefused", fmt.Sprintf("LiveKit answered with %v (%v)", first, errors.Join(err, socket.Close()))}
	}
	socket.SetReadDeadline(time.Time{})
	joined := first.GetJoin()
	m.sid, m.permission = joined.Participant.Sid, joined.Participant.Permission
	m.publisher, m.subscriber = newPeer(m, livekit.SignalTarget_PUBLISHER), newPeer(m, livekit.SignalTarget_SUBSCRIBER)
	if o.Listens {
		m.listen(joined.OtherParticipants)
	}
	c.mutex.Lock()
	c.members[number] = m
	c.mutex.Unlock()
	m.tell("joined", permitted(m.permission, fields{"identity": joined.Participant.Identity, "sid": m.sid}))
	go m.read()
	if joined.SubscriberPrimary && o.AnswersOffers { // without, it stays JOINED
		_, err = receive(m, m.subscriber.connected)
	}
	var tracks []string
	if err == nil && o.RepublishAlways {
		m.republish(o.Publish...)
	} else if err == nil {
		tracks, err = m.publish(o.Publish)
	}
	if err != nil {
		m.leave()
	}
	return tracks, err
}

// --- What the member does -----------------------------------------------------------------------------------------

// Returns the tracks when their media flows.
func (m *member) publish(publications []publication) ([]string, error) {
	sids, refused := m.addTracks(publications)
	if len(sids) == 0 {
		return nil, refused
	}
	if err := m.negotiate(); err != nil {
		return nil, errors.Join(refused, err)
	}
	_, err := receive(m, m.publisher.connected)
	return sids, errors.Join(refused, err)
}

// Asks LiveKit for all of them, then waits for its answers. Returns those that it allows, and what it said to the others.
func (m *member) addTracks(publications []publication) ([]string, error) {
	answers := make([]chan *livekit.SignalResponse, len(publications))
	for index, published := range publications {
		answers[index] = make(chan *livekit.SignalResponse, 1)
		publications[index].cid = rand.Text()
		published = publications[index]
		m.mutex.Lock()
		m.asked[published.cid] = answers[index]
		m.mutex.Unlock()
		source, known := livekit.TrackSource_value[strings.ToUpper(published.Source)]
		kind, kindKnown := livekit.TrackType_value[published.Type]
		if !known || !kindKnown {
			return nil, fmt.Errorf("there is no source %q of type %q", published.Source, published.Type)
		}
		m.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_AddTrack{AddTrack: &livekit.AddTrackRequest{
			Cid: published.cid, Name: published.Source, Source: livekit.TrackSource(source), Type: livekit.TrackType(kind),
			Muted: published.Muted, DisableRed: true, Width: 16, Height: 16,
		}}})
	}
	sids, failures := []string{}, []error{}
	for index, published := range publications {
		answer, err := receive(m, answers[index])
		if err == nil {
			err = m.addTrack(published, answer)
		}
		if err == nil {
			sids = append(sids, answer.GetTrackPublished().Track.Sid)
		}
		failures = append(failures, err)
	}
	return sids, errors.Join(failures...)
}

func (m *member) addTrack(published publication, answer *livekit.SignalResponse) error {
	if refused := answer.GetRequestResponse(); refused != nil {
		return failure{"PublishRefused", fmt.Sprintf("may not publish %s: %s", published.Source, refused.Reason)}
	}
	t := newTrack(published, answer.GetTrackPublished().Track.Sid)
	// Never a transceiver that was used before: LiveKit would take it for the track that went.
	sendOnly := webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}
	transceiver, err := m.publisher.AddTransceiverFromTrack(t.local, sendOnly)
	if err != nil {
		return err
	}
	t.sender = transceiver.Sender()
	m.mutex.Lock()
	m.tracks[t.sid] = t
	m.mutex.Unlock()
	startPlaying(t)
	m.tell("published", fields{"track_sid": t.sid, "source": t.Source})
	return nil
}

func (m *member) negotiate() error {
	m.negotiating.Lock()
	defer m.negotiating.Unlock()
	offer, err := m.publisher.CreateOffer(nil)
	if err != nil {
		return err
	}
	if err := m.publisher.SetLocalDescription(offer); err != nil {
		return err
	}
	description := &livekit.SessionDescription{Type: "offer", Sdp: offer.SDP}
	m.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_Offer{Offer: description}})
	failed, err := receive(m, m.negotiated)
	return errors.Join(failed, err)
}

func (m *member) unpublish(sid string) error {
	m.mutex.Lock()
	t := m.tracks[sid]
	delete(m.tracks, sid)
	m.mutex.Unlock()
	if t == nil {
		return fmt.Errorf("the member does not publish %s", sid)
	}
	m.tell("unpublished", fields{"track_sid": sid, "source": t.Source})
	stopPlaying(t)
	if err := m.publisher.RemoveTrack(t.sender); err != nil {
		return err
	}
	return m.negotiate()
}

// Does nothing when LiveKit took the track away meanwhile.
func (m *member) mute(sid string, muted bool) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if t := m.tracks[sid]; t != nil {
		t.muted.Store(muted)
		request := &livekit.MuteTrackRequest{Sid: sid, Muted: muted}
		m.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_Mute{Mute: request}})
	}
}

func (m *member) leave() {
	m.mutex.Lock()
	m.left = true
	m.mutex.Unlock()
	request := &livekit.LeaveRequest{Reason: livekit.DisconnectReason_CLIENT_INITIATED}
	m.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_Leave{Leave: request}})
	select { // closed too soon, with something unread, it would take back what was said
	case <-m.done:
	case <-time.After(leaveWithin / 2):
	}
	m.socket.Close()
	<-m.done
	m.stop()
}

// Media ends too.
func (m *member) stop() {
	m.mutex.Lock()
	tracks := m.tracks
	m.tracks = map[string]*track{}
	m.mutex.Unlock()
	for _, t := range tracks {
		stopPlaying(t)
	}
	m.report(errors.Join(m.publisher.Close(), m.subscriber.Close()))
}

// --- What LiveKit tells it ----------------------------------------------------------------------------------------

func (m *member) read() {
	defer close(m.done)
	for {
		said, err := m.next()
		if err == nil {
			err = m.take(said)
		}
		if err == nil {
			continue
		}
		if !m.hasLeft() { // it is heard on, as any client that means to come back
			m.tell("closed", fields{"reason": err.Error()})
		}
		return
	}
}

// Skips what is about others, which in a large room is nearly everything: reading it costs more than sending sound.
func (m *member) next() (*livekit.SignalResponse, error) {
	for {
		_, payload, err := m.socket.ReadMessage()
		if err != nil {
			return nil, err
		}
		if !m.Watch && !m.Listens && bytes.HasPrefix(payload, updateTag) && !bytes.Contains(payload, []byte(m.sid)) {
			continue
		}
		said := &livekit.SignalResponse{}
		return said, proto.Unmarshal(payload, said)
	}
}

func (m *member) take(said *livekit.SignalResponse) error {
	switch message := said.Message.(type) {
	case *livekit.SignalResponse_Answer:
		m.negotiated <- m.publisher.describe(webrtc.SDPTypeAnswer, message.Answer.Sdp)
	case *livekit.SignalResponse_Offer:
		if m.AnswersOffers {
			return m.answerOffer(message.Offer)
		}
	case *livekit.SignalResponse_Trickle:
		if message.Trickle.Target == livekit.SignalTarget_PUBLISHER {
			return m.publisher.addCandidate(message.Trickle.CandidateInit)
		}
		return m.subscriber.addCandidate(message.Trickle.CandidateInit)
	case *livekit.SignalResponse_Update:
		for _, participant := range message.Update.Participants {
			m.takeUpdate(participant)
		}
	case *livekit.SignalResponse_TrackPublished:
		m.answerAsked(message.TrackPublished.Cid, said)
	case *livekit.SignalResponse_RequestResponse:
		m.answerAsked(message.RequestResponse.GetAddTrack().GetCid(), said)
	case *livekit.SignalResponse_Mute:
		m.tell("mute", fields{"track_sid": message.Mute.Sid, "muted": message.Mute.Muted})
		m.mute(message.Mute.Sid, message.Mute.Muted && !m.UnmuteAlways) // clients confirm it
	case *livekit.SignalResponse_TrackUnpublished:
		go m.takeUnpublished(message.TrackUnpublished.TrackSid)
	case *livekit.SignalResponse_RefreshToken:
		m.tell("refresh_token", fields{"token": message.RefreshToken})
	case *livekit.SignalResponse_Leave:
		m.mutex.Lock()
		m.left = true
		m.mutex.Unlock()
		m.tell("leave", fields{"reason": message.Leave.Reason.String()})
		m.stop()
	}
	return nil
}

func (m *member) answerOffer(offer *livekit.SessionDescription) error {
	if err := m.subscriber.describe(webrtc.SDPTypeOffer, offer.Sdp); err != nil {
		return err
	}
	answer, err := m.subscriber.CreateAnswer(nil)
	if err != nil {
		return err
	}
	if err := m.subscriber.SetLocalDescription(answer); err != nil {
		return err
	}
	description := &livekit.SessionDescription{Type: "answer", Sdp: answer.SDP, Id: offer.Id}
	m.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_Answer{Answer: description}})
	return nil
}

func (m *member) answerAsked(cid string, answer *livekit.SignalResponse) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if answered := m.asked[cid]; answered != nil {
		delete(m.asked, cid)
		answered <- answer
	}
}

func (m *member) takeUpdate(participant *livekit.ParticipantInfo) {
	if participant.Sid != m.sid {
		m.know(participant)
		if m.Watch {
			tracks := []fields{}
			for _, t := range participant.Tracks {
				tracks = append(tracks, fields{"sid": t.Sid, "source": lower(t.Source), "type": t.Type.String(), "muted": t.Muted})
			}
			m.tell("participant", fields{"identity": participant.Identity, "state": participant.State.String(), "tracks": tracks})
		}
		return
	}
	if participant.Permission != nil && !proto.Equal(participant.Permission, m.permission) {
		m.permission = participant.Permission
		m.tell("permission", permitted(m.permission, fields{}))
		if m.RepublishAlways {
			go m.republish()
		}
	}
}

func (m *member) takeUnpublished(sid string) {
	m.mutex.Lock()
	t := m.tracks[sid]
	m.mutex.Unlock()
	if t == nil { // it was its own doing
		return
	}
	m.report(m.unpublish(sid))
	if m.RepublishAlways {
		m.republish(t.publication)
	}
}

// Publishes what was taken away or refused; what is refused (again) waits for another permission.
func (m *member) republish(more ...publication) {
	m.republishing.Lock()
	defer m.republishing.Unlock()
	wanted := append(m.takenAway, more...)
	m.takenAway = nil
	for _, published := range wanted {
		if _, err := m.publish([]publication{published}); err != nil {
			m.takenAway = append(m.takenAway, published)
		}
	}
}

// --- Tools --------------------------------------------------------------------------------------------------------

func receive[T any](m *member, from <-chan T) (T, error) {
	var nothing T
	select {
	case received := <-from:
		return received, nil
	case <-m.done:
		return nothing, errEnded
	case <-time.After(answerWithin):
		return nothing, errors.New("LiveKit did not answer in time")
	}
}

// What cannot be sent is noticed by reading, which ends then.
func (m *member) send(request *livekit.SignalRequest) {
	encoded, err := proto.Marshal(request)
	if err != nil {
		log.Fatal(err)
	}
	m.writing.Lock()
	defer m.writing.Unlock()
	if m.socket.WriteMessage(websocket.BinaryMessage, encoded) != nil {
		m.socket.Close()
	}
}

func (m *member) tell(event string, told fields) {
	told["event"], told["member"], told["at"] = event, m.number, monotonic()
	m.crowd.write(told)
}

func (m *member) report(err error) {
	if err != nil && !errors.Is(err, errEnded) && !m.hasLeft() {
		log.Printf("member %d: %v", m.number, err)
	}
}

func (m *member) hasLeft() bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.left
}

func permitted(permission *livekit.ParticipantPermission, told fields) fields {
	sources := []string{}
	for _, source := range permission.CanPublishSources {
		sources = append(sources, lower(source))
	}
	told["can_publish"], told["sources"] = permission.CanPublish, sources
	return told
}

func lower(name fmt.Stringer) string { return strings.ToLower(name.String()) }
