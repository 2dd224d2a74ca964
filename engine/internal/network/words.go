package network

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"
)

// The words that packet rules are made of. Registers: reg(0), reg(1)… are of
// four bytes and adjacent, so that a concatenation fills them in order; wide
// ones are of sixteen and lie over the same place.

func reg(n int) uint32  { return unix.NFT_REG32_00 + uint32(n) }
func wide(n int) uint32 { return unix.NFT_REG_1 + uint32(n) }

func proto(reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}}
}

func nfproto(reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}}
}

func payload(reg, offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

func port(reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
}

func iface(key expr.MetaKey, reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}}
}

func inSet(s *nftables.Set, reg uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}}
}

func notInSet(s *nftables.Set, reg uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID, Invert: true}}
}

// lookUp loads an address and a port for dnat, an address for snat.
func lookUp(s *nftables.Set, from uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: from, DestRegister: reg(0), IsDestRegSet: true, SetName: s.Name, SetID: s.ID}}
}

// dnat turns a packet to the address in reg(0) and the port behind it.
func dnat(f *family) []expr.Any {
	return []expr.Any{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg(0), RegProtoMin: reg(int(f.addrLength / 4)), Specified: true,
	}}
}

// snat has a packet come from the address in reg(0).
func snat(f *family) []expr.Any {
	return []expr.Any{&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: reg(0)}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func toThisHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(0), FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func addressIn(offset uint32, cidr string) []expr.Any {
	p := netip.MustParsePrefix(cidr).Masked()
	length := uint32(p.Addr().BitLen() / 8)
	return []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: length, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: p.Addr().AsSlice()},
	}
}

func equal(reg uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}}
}

func ctState(bits uint32) []expr.Any { return ctHas(expr.CtKeySTATE, bits) }

// ipsDstNat is IPS_DST_NAT of the kernel's nf_conntrack_common.h.
const ipsDstNat = 1 << 5

func ctStatusDNAT() []expr.Any { return ctHas(expr.CtKeySTATUS, ipsDstNat) }

func ctHas(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func leave() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

func jump(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}
}

// ifname is an interface's name as the kernel compares it: 16 bytes.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// Parts of a concatenated key fill four bytes each.
func inetService(port uint16) []byte { return []byte{byte(port >> 8), byte(port), 0, 0} }

func inetProto(p network.IPProtocol) []byte {
	n := map[network.IPProtocol]byte{network.TCP: unix.IPPROTO_TCP, network.UDP: unix.IPPROTO_UDP, network.SCTP: unix.IPPROTO_SCTP}[p]
	return []byte{n, 0, 0, 0}
}
