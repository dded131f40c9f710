// A js-libp2p peer for test_js_libp2p.py, driven by one JSON object per line: commands on stdin, what happens on stdout.
// What it knows of coppermesh is p2p/PROTOCOL.md: Signatures, Records, Announcements.
import { verify, createPublicKey } from 'node:crypto'
import { createInterface } from 'node:readline'
import { decode, encode } from '@msgpack/msgpack'
import { blake3 } from '@noble/hashes/blake3.js'
import { multiaddr } from '@multiformats/multiaddr'

// libp2p wants Node 22; this is all that it misses in Node 20.
if (Promise.withResolvers === undefined) {
  Promise.withResolvers = function () {
    let resolve, reject
    const promise = new Promise((one, other) => { resolve = one; reject = other })
    return { promise, resolve, reject }
  }
}
const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { gossipsub } = await import('@libp2p/gossipsub')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { preSharedKey } = await import('@libp2p/pnet')
const { byteStream } = await import('@libp2p/utils')

const [topic, swarmKey] = process.argv.slice(2)
const tell = what => process.stdout.write(JSON.stringify(what) + '\n')

const varint = number => {
  const bytes = []
  for (; number > 127; number >>>= 7) bytes.push(number & 127 | 128)
  return Buffer.from([...bytes, number])
}

// PROTOCOL.md, Signatures: the layout of libp2p's signed envelope, over BLAKE3 of the body.
function holds (domain, body, signer, signature) {
  const name = Buffer.from(domain)
  const signed = Buffer.concat([varint(name.length), name, varint(1), Buffer.from([0x1e]), varint(32), blake3(body)])
  const key = createPublicKey({
    key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), signer]), format: 'der', type: 'spki'
  })
  return verify(null, signed, key, signature)
}

function onMessage (data, author) {
  const [body, signer, signature] = decode(data)
  const altered = Buffer.from(body)
  altered[altered.length - 1] ^= 1
  const [version, mesh, peer, sequence, issued, expires, software] = decode(body, { useBigInt64: true })
  tell({
    announcement: software,
    sequence: Number(sequence),
    peer: Buffer.from(peer).toString('hex'),
    mesh: Buffer.from(mesh).toString('hex'),
    author: author?.toString(),
    holds: holds('coppermesh/announcement/1', body, signer, signature),
    holds_altered: holds('coppermesh/announcement/1', altered, signer, signature),
    holds_as_receipt: holds('coppermesh/receipt/1', body, signer, signature)
  })
}

// PROTOCOL.md, The card: one stream, opened by the smaller id; four bytes of length and a MessagePack array each.
const sendCard = (bytes, card) => {
  const body = Buffer.from(encode(card))
  const length = Buffer.alloc(4)
  length.writeUInt32BE(body.length)
  return bytes.write(Buffer.concat([length, body]))
}
const receiveCard = async bytes => {
  const length = Buffer.from((await bytes.read({ bytes: 4 })).subarray()).readUInt32BE()
  const [chain, code, sentence] = decode((await bytes.read({ bytes: length })).subarray())
  return { links: chain.length, code, sentence }
}
// An Ed25519 peer id holds its key: the last 32 bytes of the multihash. Ids are compared as these.
const keyOf = peer => Buffer.from(peer.toMultihash().bytes).subarray(-32)
let chain = null
let membership = null

async function showCard (connection) {
  const bytes = byteStream(await connection.newStream(membership))
  await sendCard(bytes, [chain, 'ok', ''])
  const theirs = await receiveCard(bytes)
  await sendCard(bytes, [[], 'ok', ''])
  tell({ card: theirs })
}

async function answerCard (stream) {
  const bytes = byteStream(stream)
  const theirs = await receiveCard(bytes)
  await sendCard(bytes, [chain, 'ok', ''])
  const last = await receiveCard(bytes)
  tell({ card: last.code === 'ok' ? theirs : last })
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionProtector: swarmKey === undefined ? undefined : preSharedKey({ psk: Buffer.from(swarmKey, 'base64') }),
  connectionGater: { denyDialMultiaddr: () => false },
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub({ allowPublishToZeroTopicPeers: true, globalSignaturePolicy: 'StrictSign' })
  }
})
node.services.pubsub.subscribe(topic)
node.services.pubsub.addEventListener('gossipsub:message', event => {
  const { msg } = event.detail
  try { onMessage(msg.data, msg.from) } catch (error) { tell({ unreadable: error.message }) }
})
tell({ address: node.getMultiaddrs()[0].toString() })

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  try {
    if (command.dial !== undefined) {
      const connection = await node.dial(multiaddr(command.dial), { signal: AbortSignal.timeout(15000) })
      const milliseconds = await node.services.ping.ping(multiaddr(command.dial))
      tell({ dialled: connection.remotePeer.toString(), security: connection.encryption, ping: milliseconds })
    } else if (command.chain !== undefined) {
      // Each link is body, signer and signature, as PROTOCOL.md has a SignedRecord.
      chain = command.chain.map(link => decode(Buffer.from(link, 'base64')))
      membership = command.membership
      await node.handle(membership, stream => { answerCard(stream).catch(error => tell({ turned: error.message })) })
      tell({ ready: true })
    } else if (command.enter !== undefined) {
      const connection = await node.dial(multiaddr(command.enter), { signal: AbortSignal.timeout(15000) })
      connection.addEventListener('close', () => tell({ closed: true }))
      if (Buffer.compare(keyOf(node.peerId), keyOf(connection.remotePeer)) < 0) {
        showCard(connection).catch(error => tell({ turned: error.message }))
      }
      tell({ entering: true })
    } else if (command.publish !== undefined) {
      await node.services.pubsub.publish(topic, Buffer.from(command.publish, 'base64'))
      tell({ published: true })
    } else {
      break
    }
  } catch (error) {
    tell({ failed: `${error.name}: ${error.message}` })
  }
}
await node.stop()
process.exit(0)
