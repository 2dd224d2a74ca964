package forward

import (
	"encoding/binary"
	"os"
	"strconv"
	"time"

	"github.com/minke-os/minke/runtime/internal/wire"
)

// Severities of syslog, which journald has, too.
const (
	severityError = 3
	severityInfo  = 6
)

func severity(stream string) int {
	if stream == "stderr" {
		return severityError
	}
	return severityInfo
}

// appendJournal writes an entry in journald's native protocol
// (systemd.io/JOURNAL_NATIVE_PROTOCOL): fields as NAME=value lines, the text,
// which may be any bytes, behind its length. The names are those that Docker's
// journald driver gives.
func appendJournal(b []byte, fields []string, line []byte, stream string, at time.Time, ordinal uint64, more bool) []byte {
	b = append(b, "PRIORITY="...)
	b = strconv.AppendInt(b, int64(severity(stream)), 10)
	b = append(b, "\nSYSLOG_TIMESTAMP="...)
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, "\nCONTAINER_LOG_ORDINAL="...)
	b = strconv.AppendUint(b, ordinal, 10)
	b = append(b, '\n')
	if more {
		b = append(b, "CONTAINER_PARTIAL_MESSAGE=true\n"...)
	}
	for _, f := range fields {
		b = append(append(b, f...), '\n')
	}
	b = append(b, "MESSAGE\n"...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(line)))
	return append(append(b, line...), '\n')
}

// appendSyslog writes a line as RFC 3164 or 5424 has it, or in the form of
// local daemons, which has no host. A stream separates lines by newlines.
func appendSyslog(b []byte, f *wire.Syslog, line []byte, stream string, at time.Time, streaming bool) []byte {
	b = append(b, '<')
	b = strconv.AppendInt(b, int64(f.Facility<<3|severity(stream)), 10)
	b = append(b, '>')
	pid := strconv.Itoa(os.Getpid())
	switch f.Format {
	case "rfc5424", "rfc5424micro":
		layout := time.RFC3339
		if f.Format == "rfc5424micro" {
			layout = "2006-01-02T15:04:05.000000Z07:00"
		}
		b = append(at.AppendFormat(append(b, "1 "...), layout), ' ')
		b = append(b, f.Host+" "+f.Tag+" "+pid+" "+f.Tag+" - "...)
	case "rfc3164":
		b = append(at.AppendFormat(b, time.Stamp), " "+f.Host+" "+f.Tag+"["+pid+"]: "...)
	default:
		b = append(at.AppendFormat(b, time.Stamp), " "+f.Tag+"["+pid+"]: "...)
	}
	b = append(b, line...)
	if streaming {
		b = append(b, '\n')
	}
	return b
}
