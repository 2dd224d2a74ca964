# What a script of docker-py does. The engine's socket is in DOCKER_HOST.
import io
import tarfile
import time
import threading

import docker
from docker.errors import APIError, BuildError, ContainerError, ImageNotFound, NotFound

client = docker.from_env(version="auto", timeout=30)
api = client.api


def until(done, what):
    """For what another process does in its own time."""
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, what


def expect(got, want, what):
    assert got == want, f"{what}: got {got!r}, want {want!r}"


def raises(kind, f, text=""):
    try:
        f()
    except kind as e:
        assert text in str(e), f"{kind.__name__} says {e}, want {text!r} in it"
        return e
    raise AssertionError(f"no {kind.__name__}")


def tar_of(name, data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o640
        t.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


def run():
    expect(client.ping(), True, "ping")
    assert client.version()["Os"] == "linux" and client.info()["OSType"] == "linux"
    expect(client.containers.run("busybox", "echo hi", remove=True), b"hi\n", "run")
    expect(client.containers.run("busybox", ["sh", "-c", "echo $A"], environment={"A": "b"}, remove=True), b"b\n", "environment")
    volumes = {"pyvol": {"bind": "/v", "mode": "ro"}}
    expect(client.containers.run("busybox", ["ls", "-d", "/v"], volumes=volumes, remove=True), b"/v\n", "volumes")
    failed = raises(ContainerError, lambda: client.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], remove=True))
    expect((failed.exit_status, failed.stderr), (3, b"bad\n"), "failed run")
    raises(APIError, lambda: client.containers.run("busybox", "nosuch", remove=True), "executable file not found")


def life():
    c = client.containers.run("busybox", ["sh", "-c", "echo one; echo two >&2; exec sleep 1000"], name="pylife", detach=True,
                              labels={"a": "b"}, mem_limit="32m", nano_cpus=500_000_000, ports={"80/tcp": None}, healthcheck={"test": ["NONE"]},
                              ulimits=[docker.types.Ulimit(name="nofile", soft=100, hard=200)], tmpfs={"/t": ""}, init=True)
    c.reload()
    expect(c.status, "running", "status")
    expect(c.attrs["HostConfig"]["Memory"], 32 << 20, "memory")
    assert c.attrs["NetworkSettings"]["IPAddress"] and c.ports["80/tcp"][0]["HostPort"]
    for line in c.logs(stream=True, follow=True, stdout=True, stderr=False):
        expect(line, b"one\n", "streamed log")
        break
    until(lambda: c.logs(stdout=False, stderr=True) == b"two\n", "stderr")
    expect(c.logs(tail=1).count(b"\n"), 1, "lines of the tail")

    expect(tuple(c.exec_run(["sh", "-c", "echo out; echo err >&2; exit 4"], demux=True)), (4, (b"out\n", b"err\n")), "exec, both streams")
    expect(tuple(c.exec_run("id -u", user="1000")), (0, b"1000\n"), "exec as user")
    expect(c.exec_run("nosuch").exit_code, 127, "exec of nothing")
    expect(b"".join(c.exec_run("echo streamed", stream=True).output), b"streamed\n", "exec, streamed")
    _, sock = c.exec_run("cat", stdin=True, socket=True, tty=True)
    sock._sock.sendall(b"typed\n")
    assert b"typed" in sock.read(5)
    sock.close()

    expect(c.put_archive("/tmp", tar_of("f", b"content")), True, "put_archive")
    bits, stat = c.get_archive("/tmp/f")
    expect((stat["name"], stat["size"]), ("f", 7), "stat")
    with tarfile.open(fileobj=io.BytesIO(b"".join(bits))) as t:
        expect(t.extractfile("f").read(), b"content", "get_archive")
    raises(NotFound, lambda: c.get_archive("/nosuch"), "Could not find the file")

    s = c.stats(stream=False)
    assert s["memory_stats"]["usage"] > 0 and s["cpu_stats"]["online_cpus"] > 0 and s["precpu_stats"]["system_cpu_usage"] > 0, s
    assert "eth0" in s["networks"], s
    assert next(c.stats(decode=True))["name"] == "/pylife"
    assert {"Path": "/tmp/f", "Kind": 1} in c.diff()
    assert any("sleep" in p[-1] for p in c.top()["Processes"])
    c.update(mem_limit="64m", memswap_limit="128m")
    c.rename("pylife2")
    c.pause()
    c.reload()
    expect(c.status, "paused", "status")
    c.unpause()
    c.restart(timeout=0)
    # A signal before the first process listens for them would end it.
    until(lambda: any("sleep" in p[-1] for p in c.top()["Processes"]), "the program runs")
    c.kill("TERM")
    expect(c.wait(timeout=20)["StatusCode"], 143, "exit code")
    expect([x.name for x in client.containers.list(all=True, filters={"label": "a=b", "status": "exited"})], ["pylife2"], "list")
    image = c.commit(repository="pycommit", tag="1", conf={"Labels": {"x": "y"}})
    expect(client.images.get("pycommit:1").id, image.id, "commit")
    c.remove(v=True)
    raises(NotFound, c.reload, "No such container")
    client.images.remove("pycommit:1")


def images():
    image, log = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nARG A\nRUN echo $A > /a\nLABEL l=1\nCMD cat /a\n"), tag="pybuild:1", buildargs={"A": "arg"}, rm=True)
    assert any("Successfully built" in e.get("stream", "") for e in log)
    expect(client.containers.run("pybuild:1", remove=True), b"arg\n", "built image")
    raises(BuildError, lambda: client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 9\n")), "returned a non-zero code: 9")
    expect(image.tag("pybuild", "2"), True, "tag")
    expect(sorted(client.images.get("pybuild:1").tags), ["pybuild:1", "pybuild:2"], "tags")
    saved = b"".join(image.save(named=True))
    client.images.remove("pybuild:1")
    client.images.remove("pybuild:2", force=True)
    raises(ImageNotFound, lambda: client.images.get("pybuild:1"))
    assert client.images.load(saved)[0].history()
    expect(len(client.images.list(filters={"label": "l=1"})), 1, "images by label")
    client.images.remove(image.id, force=True)


def networks_and_volumes():
    pool = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet="10.99.0.0/24", gateway="10.99.0.1")])
    n = client.networks.create("pynet", driver="bridge", ipam=pool, labels={"a": "b"}, check_duplicate=True)
    c = client.containers.create("busybox", ["sleep", "100"], name="pypeer")
    n.connect(c, aliases=["peer"], ipv4_address="10.99.0.77")
    c.start()
    expect(client.containers.run("busybox", ["sh", "-c", "ping -c1 -W2 peer | head -1"], network="pynet", remove=True),
           b"PING peer (10.99.0.77): 56 data bytes\n", "name")
    n.reload()
    expect([x.name for x in n.containers], ["pypeer"], "members")
    raises(APIError, n.remove, "active endpoints")
    n.disconnect(c)
    c.remove(force=True)
    n.remove()
    v = client.volumes.create("pyvol2", labels={"a": "b"})
    expect([x.name for x in client.volumes.list(filters={"label": "a=b"})], ["pyvol2"], "volumes")
    v.remove()
    client.volumes.get("pyvol").remove()
    raises(NotFound, lambda: client.volumes.get("pyvol2"))


def events():
    seen, stream = [], client.events(decode=True, filters={"type": "container", "event": ["start", "die"]})

    def read():
        for e in stream:
            seen.append((e["status"], e["Actor"]["Attributes"]["name"]))
            if len(seen) == 2:
                return

    reader = threading.Thread(target=read)
    reader.start()
    client.containers.run("busybox", "true", name="pyevents", remove=True)
    reader.join(10)
    stream.close()
    expect(seen, [("start", "pyevents"), ("die", "pyevents")], "events")
    assert client.df()["LayersSize"] > 0


for part in run, life, images, networks_and_volumes, events:
    part()
    print("ok", part.__name__)
