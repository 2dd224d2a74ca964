package dockerfile

import (
	"strings"
	"testing"
)

// samples are of all instructions, right and wrong.
var samples = []string{
	"FROM alpine", "from --platform=$v alpine:3 aS Base", "FROM a b", "FROM a as 1x", "FROM a AS x/y", "FROM", "FROM --x a", "FROM --platform=a --platform=b a",
	"ARG a", "ARG a=1 b c= d=\"x y\"", "ARG", "ARG =1", "ARG --x a\nFROM $v",
	"# escape=`\nFROM a\nRUN one `\n  two\nENV a=b` c", "#escape=x\nFROM a", "# escape=\\\n# escape=`\nFROM a", "# syntax=x\n# check=skip=all\n\n# escape=`\nFROM a\\\n", "# other=1\n# escape=`\nFROM a",
	"\ufeffFROM a", "", "# nothing", "\n\n  \t\n", "RUN early", "FRM a", "NOTHING like it", "\\\nFROM a", "\\",
	"RUN a\n# check=skip=all\nRUN b", "RUN a \\\n  # comment\n\n  b \\\n\n c", "RUN a \\\\\nUSER b", "RUN a \\ \t\r\n  b", "RUN a \\", "  RUN   a  b  ", "RUN", "RUN []", "RUN [\"a\", \"b c\"]", "RUN [\"a\", 1]", "RUN [ -f x ]", "RUN [\"a\"] b",
	"RUN --mount=type=cache,target=/c,id=i,sharing=locked,mode=0700,uid=1,gid=2 x", "RUN --mount=target=$v,ro --mount=type=tmpfs,target=/t,size=1k,rw=false x", "RUN --mount=type=bnd,target=/x x",
	"RUN --mount=type=secret,id=s,required,env=E --mount=type=secret,src=s,target=rel --mount=type=ssh,required=true x", "RUN --mount=type=secret,from=a,id=x x", "RUN --mount=type=secret x", "RUN --mount=type=secret,id=a,src=b x",
	"RUN --mount=from=$v,target=/x x", "RUN --mount=from=x$,target=/x x", "RUN --mount=\"type=bind,\\\"target=/a,b\\\"\" x", "RUN --mount=type=bind,mode=1 x", "RUN --mount=type=tmpfs,uid=1 x", "RUN --mount=type=bind,gid=1,sharing=locked x",
	"RUN --mount=target x", "RUN --mount= x", "RUN --mount x", "RUN --mount=size=1,target=/x x", "RUN --mount=required x", "RUN --mount=trget=/x x", "RUN --mount=ro=perhaps x", "RUN --mount=type=cache,sharing=some x", "RUN --mount=mode=9 x", "RUN --mount=a\"b x",
	"RUN --network=none --security=insecure x", "RUN --network=some x", "RUN --security=some x", "RUN --device=d x", "RUN --netwrk=none x", "RUN -- --x y", "RUN --network=none --network=host x", "RUN --network=none", "RUN --net\\work=\"no\\\"ne\" --", "RUN --network='none' 'x'",
	"COPY a b", "COPY --from=x --chown=1:$v --chmod=600 --parents --exclude=*.a --exclude=b --link a b /c/", "COPY a", "COPY [\"a b\", \"c\"]", "COPY [1, 2]", "COPY --link=maybe a b", "COPY --parents= a b", "COPY --chown a b", "COPY --from= a b", "COPY --link=FALSE a\tb",
	"COPY <<A <<-\"B\" x /d\n $v\nA\n\t\tb\n\t B\n\tB\nUSER u", "COPY a <<B\nx\nB", "COPY <<A /d\nno end", "RUN <<EOF\necho $v\nEOF\nUSER u", "RUN python3 <<-'E' && cat 3<<F\n\tx\n\tE\ny\nF", "RUN cat <<< x", "RUN cat << EOF\nx\nEOF", "RUN [\"a\", \"<<EOF\"]", "ADD <<A <<A /d\n1\nA\n2\nA", "RUN <<\"\"\n\n", "CMD <<EOF\nx\nEOF",
	"ADD --checksum=sha256:$v --unpack --keep-git-dir=false --chown=a a b", "ADD --unpack=0 a b", "ADD --from=x a b", "ADD a",
	"ENV a=1 b=\"two words\" c=three\\ words d='$v' e=\"a\\\"b\"", "ENV old style  value ", "ENV a", "ENV", "ENV a=1 b", "ENV =1", "ENV a=\\", "ENV a='x\\", "ENV --x a=b", "ENV a=\"x\\", "ENV \"a b\"=c",
	"LABEL \"a b\"=\"c\" d=$v", "LABEL a b c", "LABEL",
	"MAINTAINER a b <c>", "MAINTAINER", "MAINTAINER --x a", "USER $v", "USER", "USER a b", "WORKDIR $v/ x", "WORKDIR", "STOPSIGNAL 9", "STOPSIGNAL", "STOPSIGNAL --x 9",
	"VOLUME a $v", "VOLUME [\"a b\", \" c \"]", "VOLUME []", "VOLUME [\" \"]", "VOLUME [1]", "VOLUME", "EXPOSE 80 443/tcp\t1-2", "EXPOSE", "EXPOSE --x 1",
	"CMD a b", "CMD", "CMD []", "CMD [\"a\"]", "CMD --x a", "ENTRYPOINT [\"a\", \"$v\"]", "ENTRYPOINT a", "ENTRYPOINT", "SHELL [\"a\", \"b\"]", "SHELL a b", "SHELL []", "SHELL",
	"HEALTHCHECK NONE", "HEALTHCHECK NONE x", "HEALTHCHECK --interval=1m --timeout=2s --start-period=0 --start-interval=1ms --retries=3 CMD [\"a\", \"b\"]", "HEALTHCHECK cmd a b", "HEALTHCHECK CMD", "HEALTHCHECK", "HEALTHCHECK x y", "HEALTHCHECK --interval=1us CMD a", "HEALTHCHECK --interval=x CMD a", "HEALTHCHECK --retries=-1 CMD a", "HEALTHCHECK --retries=x CMD a", "HEALTHCHECK --x=1 CMD a", "HEALTHCHECK CMD [1]",
	"ONBUILD RUN a  b", "onbuild  copy <<A /d\nx\nA", "ONBUILD", "ONBUILD ONBUILD RUN a", "ONBUILD FROM a", "ONBUILD maintainer a", "ONBUILD --x RUN a", "ONBUILD RUN --network=none a", "ONBUILD ENV a", "ONBUILD COPY [1]", "ONBUILD WHAT ever", "ONBUILD HEALTHCHECK",
}

func TestParseReadsWhatBuildKitReads(t *testing.T) {
	for _, text := range samples {
		compare(t, []byte(text))
		compare(t, []byte("FROM a\n"+text))
		compare(t, []byte("FROM a\r\n"+strings.ReplaceAll(text, "\n", "\r\n")+"\r\nUSER after\r\n"))
	}
}

func TestErrorsSayWhereAndWhat(t *testing.T) {
	tests := []struct{ text, want string }{
		{"FROM a\n\n# c\nRUN x \\\n y\nRNU y", "dockerfile parse error on line 6: unknown instruction: RNU (did you mean RUN?)"},
		{"FROM a\nCOPY --form=x a b", "dockerfile parse error on line 2: unknown flag: --form (did you mean from?)"},
		{"FROM a\nRUN x \\\n  y <<EOF\nz", "dockerfile parse error on line 2: unterminated heredoc: a line with just EOF is missing"},
		{"ARG x\nRUN y", "dockerfile parse error on line 2: no build stage in current context: RUN comes before the first FROM"},
		{"FROM a\nENV b", "dockerfile parse error on line 2: ENV must have two arguments"},
		{"FROM a\nCMD [1]", "dockerfile parse error on line 2: when using JSON array syntax, arrays must be comprised of strings only"},
		{"# none", "dockerfile parse error on line 1: file with no instructions"},
	}
	for _, tt := range tests {
		if _, err := Parse([]byte(tt.text)); err == nil || err.Error() != tt.want {
			t.Errorf("Parse(%q): %v\nwant %s", tt.text, err, tt.want)
		}
	}
}

func TestInstructionsHaveNoStage(t *testing.T) {
	list, escape, err := Instructions("ENV a=b\ncmd x")
	if err != nil || escape != '\\' || len(list) != 2 || list[0].Name() != "ENV" || list[1].String() != "cmd x" {
		t.Errorf("Instructions = %v, %c, %v", list, escape, err)
	}
	for _, text := range []string{"", "FROM a", "ENV a", "WHAT"} {
		if list, _, err := Instructions(text); err == nil {
			t.Errorf("Instructions(%q) = %v, want an error", text, list)
		}
	}
}

func TestLabelsOfTheRequestHaveNoVariables(t *testing.T) {
	l := NewLabel("a", "$v")
	if err := l.Expand(expandTest); err != nil || l.Labels[0].Value != "$v" || l.String() != "LABEL a=$v" {
		t.Errorf("label = %v, %v", l, err)
	}
}
