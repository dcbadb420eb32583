/** Text of a value by which two values are compared. Equal texts mean equal content; nothing is guessed. */

import { digest, encode } from './digest.js'
import { newKey } from './key.js'
import { sha256 } from './sha256.js'

const PIECE_BYTES = 1 << 20
const identities = new WeakMap<object, string>()

/** A value that cannot be read whole equals only itself. */
function identityOf(value: unknown): string {
  if (typeof value !== 'object' && typeof value !== 'function') return `@${newKey()}`
  let id = identities.get(value!)
  if (!id) identities.set(value!, (id = `@${newKey()}`))
  return id
}

/** Returns the text, or a promise of it where the value has blobs to read. */
export function contentOf(value: unknown): string | Promise<string> {
  const blobs: Promise<string>[] = []
  let text: string
  try {
    text = textOf(value, blobs)
  } catch {
    text = identityOf(value) // it refers to itself, or is too deep
  }
  return blobs.length ? Promise.all(blobs).then((digests) => `${text}#${digests.join()}`) : text
}

function textOf(value: unknown, blobs: Promise<string>[]): string {
  const each = (values: Iterable<unknown>) => Array.from(values, (it) => (it === undefined ? 'null' : textOf(it, blobs))).join()
  switch (typeof value) {
    case 'string': return JSON.stringify(value)
    case 'bigint': return `${value}n`
    case 'function': case 'symbol': return identityOf(value)
    case 'object': break
    default: return value === undefined ? 'null' : `${value as number}`
  }
  // `onClick={order.mutate}` passes the event: it is no content.
  const { nativeEvent = value } = (value ?? {}) as { nativeEvent?: unknown }
  if (value === null || (globalThis.Event && nativeEvent instanceof Event)) return 'null'
  if ('toJSON' in value && typeof value.toJSON === 'function' && !(value instanceof URL)) return textOf(value.toJSON(), blobs)
  if (Array.isArray(value)) return `[${each(value)}]`
  if (globalThis.Blob && value instanceof Blob) {
    blobs.push(digestOf(value))
    return `Blob(${JSON.stringify([value.type, (value as Partial<File>).name ?? null])})`
  }
  if (value instanceof ArrayBuffer) return `Bytes(${sha256(new Uint8Array(value))})`
  if (ArrayBuffer.isView(value)) return `Bytes(${sha256(new Uint8Array(value.buffer, value.byteOffset, value.byteLength))})`
  for (const name of ['FormData', 'URLSearchParams', 'Map', 'Set'] as const) {
    if (globalThis[name] && value instanceof globalThis[name]) return `${name}[${each(value as Iterable<unknown>)}]`
  }
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype !== null && Object.getPrototypeOf(prototype) !== null) return identityOf(value)
  const members = Object.entries(value).filter(([, it]) => it !== undefined).sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${members.map(([name, it]) => `${JSON.stringify(name)}:${textOf(it, blobs)}`).join()}}`
}

/** Digests a blob in pieces. One that cannot be read equals only itself. */
async function digestOf(blob: Blob): Promise<string> {
  const pieces: string[] = []
  try {
    for (let at = 0; at < blob.size; at += PIECE_BYTES) {
      pieces.push(await digest(new Uint8Array(await blob.slice(at, at + PIECE_BYTES).arrayBuffer())))
    }
  } catch {
    return identityOf(blob)
  }
  return sha256(encode(pieces.join()))
}
