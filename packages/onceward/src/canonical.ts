/** Canonical text of a JSON value (RFC 8785), stricter where two values would become one. */

import { OncewardError } from './errors.js'

/** Names the place in a value that no key can be derived from, and the fix. Nothing was sent. */
export class CanonicalError extends OncewardError {
  override readonly name = 'CanonicalError' as const
  constructor(readonly kind: 'number' | 'text' | 'undefined' | 'kind', readonly path: string, what: string) {
    super(`${path || 'the payload'} ${what}`, { executed: 'no', intent: '' })
  }
}

export function canonical(value: unknown, path = ''): string {
  switch (typeof value) {
    case 'boolean':
      return String(value)
    case 'number':
      if (!Number.isFinite(value)) throw new CanonicalError('number', path, `is ${value}: send a finite number, or null`)
      if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
        throw new CanonicalError('number', path, 'is an integer beyond 2^53, where two amounts look the same: send it as a string')
      }
      return JSON.stringify(value)
    case 'string':
      return text(value, path)
    case 'object':
      return value === null ? 'null' : structure(value, path)
    case 'undefined':
      throw new CanonicalError('undefined', path, 'is undefined, which JSON has no word for: leave it out, or send null')
    default:
      throw new CanonicalError('kind', path, `is a ${typeof value}, which JSON has no word for: send a string`)
  }
}

function structure(value: object, path: string): string {
  if ('toJSON' in value && typeof value.toJSON === 'function') return canonical(value.toJSON(), path)
  if (Array.isArray(value)) return `[${Array.from(value, (item, i) => canonical(item, `${path}[${i}]`)).join()}]`
  const kind: unknown = Object.getPrototypeOf(value)
  if (kind !== null && Object.getPrototypeOf(kind) !== null) {
    throw new CanonicalError('kind', path, `is a ${value.constructor.name}, not plain data: send what is in it`)
  }
  // Sorted as JavaScript sorts strings, by UTF-16 units: what the RFC asks for.
  const members = Object.keys(value).sort().map((name) => {
    const at = path ? `${path}.${name}` : name
    return `${text(name, at)}:${canonical((value as Record<string, unknown>)[name], at)}`
  })
  return `{${members.join()}}`
}

function text(value: string, path: string): string {
  if (/\p{Surrogate}/u.test(value)) {
    throw new CanonicalError('text', path, 'has half of a surrogate pair, which is no text: cut strings between characters')
  }
  return JSON.stringify(value)
}
