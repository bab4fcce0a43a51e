package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"log"
	"sync"

	"github.com/livekit/protocol/livekit"
	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/webrtc/v4"
)

var (
	opus = webrtc.RTPCodecCapability{
		MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2, SDPFmtpLine: "minptime=10;useinbandfec=1",
	}
	vp8           = webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}
	api           = loopbackOnly()
	configuration = webrtc.Configuration{Certificates: []webrtc.Certificate{certificate()}} // one for all of them
)

func loopbackOnly() *webrtc.API {
	codecs := &webrtc.MediaEngine{}
	must(codecs.RegisterCodec(webrtc.RTPCodecParameters{RTPCodecCapability: opus, PayloadType: 111}, webrtc.RTPCodecTypeAudio))
	must(codecs.RegisterCodec(webrtc.RTPCodecParameters{RTPCodecCapability: vp8, PayloadType: 96}, webrtc.RTPCodecTypeVideo))
	settings := webrtc.SettingEngine{}
	settings.SetIncludeLoopbackCandidate(true)
	settings.SetInterfaceFilter(func(name string) bool { return name == "lo" || name == "lo0" })
	settings.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	settings.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	return webrtc.NewAPI(
		webrtc.WithMediaEngine(codecs),
		webrtc.WithSettingEngine(settings),
		webrtc.WithInterceptorRegistry(&interceptor.Registry{}), // no reports, nothing sent twice: that would cost
	)
}

func certificate() webrtc.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	generated, err := webrtc.GenerateCertificate(key)
	must(err)
	return *generated
}

// One direction of a member's media. What LiveKit says about it comes from one goroutine.
type peer struct {
	*webrtc.PeerConnection
	connected chan struct{} // closed when it is
	early     []webrtc.ICECandidateInit
}

func newPeer(m *member, target livekit.SignalTarget) *peer {
	connection, err := api.NewPeerConnection(configuration)
	must(err)
	p := &peer{PeerConnection: connection, connected: make(chan struct{})}
	connected := sync.OnceFunc(func() { close(p.connected) })
	connection.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		if state == webrtc.PeerConnectionStateConnected {
			connected()
		}
	})
	connection.OnICECandidate(func(candidate *webrtc.ICECandidate) {
		if candidate == nil {
			return
		}
		encoded, err := json.Marshal(candidate.ToJSON())
		must(err)
		trickle := &livekit.TrickleRequest{CandidateInit: string(encoded), Target: target}
		m.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_Trickle{Trickle: trickle}})
	})
	return p
}

func (p *peer) describe(kind webrtc.SDPType, sdp string) error {
	if err := p.SetRemoteDescription(webrtc.SessionDescription{Type: kind, SDP: sdp}); err != nil {
		return err
	}
	for _, candidate := range p.early {
		if err := p.AddICECandidate(candidate); err != nil {
			return err
		}
	}
	p.early = nil
	return nil
}

func (p *peer) addCandidate(encoded string) error {
	var candidate webrtc.ICECandidateInit
	if err := json.Unmarshal([]byte(encoded), &candidate); err != nil {
		return err
	}
	if p.RemoteDescription() == nil {
		p.early = append(p.early, candidate)
		return nil
	}
	return p.AddICECandidate(candidate)
}

// For what fails only by a mistake of ours, which is to end the process.
func must(err error) {
	if err != nil {
		log.Panic(err)
	}
}
