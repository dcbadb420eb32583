/** Makes keys. */

import { canonical } from './canonical.js'
import { sha256 } from './sha256.js'

export const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')

/** Makes a UUIDv7: random, and sorted by time. Works on plain `http://` too, where there is no `randomUUID`. */
export function newKey(): string {
  const { crypto } = globalThis
  if (!crypto?.getRandomValues) throw new Error("crypto.getRandomValues is missing: import 'react-native-get-random-values' before onceward")
  const random = hex(crypto.getRandomValues(new Uint8Array(9)))
  const time = Date.now().toString(16).padStart(12, '0')
  // The 7 is the version, the 8 the variant.
  return `${time}7${random}`.replace(/(.{8})(.{4})(.{4})(.{3})/, '$1-$2-$3-8$4-')
}

/**
 * Derives the key of this user, intent and payload, the same wherever and whenever it is made: for programs that cannot keep one.
 * Throws a `CanonicalError` where two payloads could become one text.
 */
export function derivedKey(user: string, intent: string, payload: unknown): string {
  return `d1-${sha256(`["onceward-1",${canonical(user)},${canonical(intent)},${canonical(payload)}]`)}`
}

const NAMES = /^(?:nonce|random|rand|salt|uuid|guid|now|time(?:stamp)?|date|ts|(?:created|updated|sent|requested|client)_?(?:at|on|time)|request_?id|_token)$|csrf|xsrf|authenticity_?token|requestverificationtoken/i
const VALUES = /^(?:\d{4}-\d\d-\d\d[T ]\d|[\da-f]{8}-[\da-f]{4}-[1-8])/i
/** True if a member looks like a time, a random value or a CSRF token: it differs at each send. */
export const isVolatile = (name: string, value: string) => NAMES.test(name) || VALUES.test(value)

/** Returns the members that look like a time, a random value or a CSRF token: they differ at each send. */
export function findVolatileFields(payload: unknown, path = ''): string[] {
  if (payload instanceof Date) return [path]
  if (typeof payload === 'string') return isVolatile('', payload) ? [path] : []
  if (typeof payload !== 'object' || payload === null) return []
  return Object.entries(payload).flatMap(([name, value]) => {
    const at = path ? `${path}.${name}` : name
    return (typeof value === 'string' || typeof value === 'number') && isVolatile(name, '') ? [at] : findVolatileFields(value, at)
  })
}
