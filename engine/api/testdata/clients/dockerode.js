// What a program with dockerode does. The engine's socket is in DOCKER_HOST,
// the module below NODE_PATH.
'use strict';
const assert = require('assert');
const { PassThrough } = require('stream');
const Docker = require('dockerode');

const docker = new Docker({ socketPath: process.env.DOCKER_HOST.replace('unix://', '') });

const collect = (stream) => new Promise((resolve, reject) => {
  const chunks = [];
  stream.on('data', (c) => chunks.push(c));
  stream.on('end', () => resolve(Buffer.concat(chunks).toString()));
  stream.on('error', reject);
});

// Both streams of a framed connection, as text.
async function demuxed(stream) {
  const out = new PassThrough(), err = new PassThrough();
  const result = Promise.all([collect(out), collect(err)]);
  docker.modem.demuxStream(stream, out, err);
  stream.on('end', () => { out.end(); err.end(); });
  return result;
}

// A tar of one file, by hand.
function tarOf(name, text) {
  const head = Buffer.alloc(512);
  head.write(name, 0);
  head.write('0000644\0', 100); head.write('0000000\0', 108); head.write('0000000\0', 116);
  head.write(text.length.toString(8).padStart(11, '0') + '\0', 124);
  head.write('00000000000\0', 136); head.write('        ', 148); head.write('0', 156); head.write('ustar\0' + '00', 257);
  head.write(head.reduce((a, b) => a + b, 0).toString(8).padStart(6, '0') + '\0 ', 148);
  const body = Buffer.alloc(Math.ceil(text.length / 512) * 512);
  body.write(text);
  return Buffer.concat([head, body, Buffer.alloc(1024)]);
}

const parts = {
  async attach() {
    const c = await docker.createContainer({ Image: 'busybox', Cmd: ['cat'], OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true });
    const stream = await c.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true });
    const output = demuxed(stream);
    await c.start();
    stream.write('typed\n');
    stream.end();
    assert.deepStrictEqual(await output, ['typed\n', '']);
    assert.strictEqual((await c.wait()).StatusCode, 0);
    await c.remove();
  },

  async run() {
    const out = new PassThrough();
    const text = collect(out);
    const [result, c] = await docker.run('busybox', ['sh', '-c', 'tty; exit 3'], out, { Tty: true });
    assert.strictEqual(await text, '/dev/pts/0\r\n');
    assert.strictEqual(result.StatusCode, 3);
    await c.remove();
  },

  async exec() {
    const c = await docker.createContainer({ name: 'ode', Image: 'busybox', Cmd: ['sh', '-c', 'echo out; echo err >&2; exec sleep 1000'], Labels: { a: 'b' } });
    await c.start();
    const x = await c.exec({ Cmd: ['sh', '-c', 'cat; echo err >&2; exit 4'], AttachStdin: true, AttachStdout: true, AttachStderr: true });
    const stream = await x.start({ hijack: true, stdin: true });
    const output = demuxed(stream);
    stream.write('in\n');
    stream.end();
    assert.deepStrictEqual(await output, ['in\n', 'err\n']);
    assert.strictEqual((await x.inspect()).ExitCode, 4);

    const logs = await c.logs({ stdout: true, stderr: true, follow: false });
    assert.ok(logs.includes('out\n') && logs.includes('err\n'));
    const follow = await c.logs({ stdout: true, follow: true });
    await new Promise((resolve) => follow.once('data', resolve));
    follow.destroy();

    await c.putArchive(tarOf('f', 'content'), { path: '/tmp' });
    const archive = await collect(await c.getArchive({ path: '/tmp/f' }));
    assert.ok(archive.includes('content'));
    assert.ok((await c.stats({ stream: false })).memory_stats.usage > 0);
    assert.strictEqual((await docker.listContainers({ filters: { label: ['a=b'] } })).length, 1);
    await c.stop({ t: 0 });
    await c.remove({ force: true });
    await assert.rejects(c.inspect(), { statusCode: 404 });
  },

  async images() {
    const stream = await docker.buildImage(tarOf('Dockerfile', 'FROM busybox\nRUN echo x > /x\n'), { t: 'ode:1' });
    const steps = await new Promise((resolve, reject) => docker.modem.followProgress(stream, (err, out) => (err ? reject(err) : resolve(out))));
    assert.ok(steps.some((s) => /Successfully tagged/.test(s.stream)));
    assert.deepStrictEqual((await docker.getImage('ode:1').inspect()).RepoTags, ['ode:1']);
    await docker.getImage('ode:1').remove();
    // Nothing listens there, so that this fails wherever the test runs.
    await assert.rejects((async () => {
      const pull = await docker.pull('127.0.0.1:1/nosuch:1');
      await new Promise((resolve, reject) => docker.modem.followProgress(pull, (err, out) => (err ? reject(err) : resolve(out))));
    })());
  },

  async events() {
    const stream = await docker.getEvents({ filters: { type: ['network'] } });
    const first = new Promise((resolve) => stream.once('data', (d) => resolve(JSON.parse(d))));
    const n = await docker.createNetwork({ Name: 'odenet', CheckDuplicate: true });
    const e = await first;
    assert.deepStrictEqual([e.Type, e.Action, e.Actor.Attributes.name], ['network', 'create', 'odenet']);
    stream.destroy();
    await n.remove();
    await docker.createVolume({ Name: 'odevol' });
    assert.strictEqual((await docker.listVolumes()).Volumes.length, 1);
    await docker.getVolume('odevol').remove();
  },
};

(async () => {
  for (const [name, part] of Object.entries(parts)) {
    await part();
    console.log('ok', name);
  }
  process.exit(0);
})().catch((err) => { console.error(err); process.exit(1); });
