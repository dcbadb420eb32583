import { readFileSync } from 'node:fs'
import { describe, expect, it, test } from 'vitest'
import { canonical, CanonicalError } from '../src/canonical.js'
import { derivedKey, newKey, findVolatileFields } from '../src/key.js'
import { backoff, decide, type Context, type Observation } from '../src/retry.js'
import { retryAfter } from '../src/retryAfter.js'
import { sha256 } from '../src/sha256.js'
import { keyOf } from '../src/wire.js'
import { createHash } from 'node:crypto'

interface Cases {
  keys: { name: string; value?: string; lines?: string[]; connection?: string; key?: string }[]
  decisions: { name: string; given?: { asked?: boolean; honoured?: boolean | null; doubt?: boolean; left_ms?: number }; heard: Record<string, unknown>; then: Record<string, unknown> }[]
  backoff: { name: string; sends: number; random: number; ms: number }[]
  retry_after: { name: string; value: string; now: string; date?: string; ms: number | null }[]
  derived: {
    name: string; user: string; intent: string; payload: string
    canonical?: string; key?: string; error?: string; text_only?: boolean
  }[]
}
const cases = JSON.parse(readFileSync(new URL('../../../wire/cases.json', import.meta.url), 'utf8')) as Cases

describe('decisions', () => {
  it('has its cases', () => expect(cases.decisions.length).toBeGreaterThanOrEqual(101))
  for (const { name, given = {}, heard, then } of cases.decisions) {
    test(name, () => {
      // The names of the vectors are those of both clients.
      const { asked = false, honoured = true, doubt = false, left_ms = 60_000 } = given
      const context: Context = { isStatusQuery: asked, supportsKeys: honoured ?? undefined, maybeExecuted: doubt, remainingMs: left_ms }
      const { retry_after_ms, ...rest } = heard
      const observation = { ...rest, ...(retry_after_ms !== undefined && { retryAfterMs: retry_after_ms }) } as Observation
      const { action, reason, ...decision } = decide(context, observation)
      expect({ do: action, because: reason, ...decision }).toEqual(then)
    })
  }
})

describe('backoff', () => {
  test.each(cases.backoff)('$name', ({ sends, random, ms }) => expect(backoff(sends, random)).toBe(ms))
})

describe('Retry-After', () => {
  test.each(cases.retry_after)('$name', ({ value, now, date, ms }) => {
    expect(retryAfter(value, Date.parse(now), date) ?? null).toBe(ms)
  })
})

describe('keys that are derived', () => {
  for (const { name, user, intent, payload, canonical: want, key, error, text_only } of cases.derived) {
    if (text_only) continue // `JSON.parse` keeps the last of two members and says nothing.
    test(name, () => {
      const value: unknown = JSON.parse(payload)
      if (error !== undefined) {
        expect(() => derivedKey(user, intent, value)).toThrow(expect.objectContaining({ name: 'CanonicalError', kind: error }))
        return
      }
      expect(canonical(['onceward-1', user, intent, value])).toBe(want)
      expect(derivedKey(user, intent, value)).toBe(key)
    })
  }

  test.each<[string, unknown, string]>([
    ['undefined', { note: undefined }, 'note'],
    ['undefined in a list', { a: [1, undefined] }, 'a[1]'],
    ['NaN', { price: { net: NaN } }, 'price.net'],
    ['a bigint', { amount: 10n }, 'amount'],
    ['a Map', { rows: new Map() }, 'rows'],
  ])('%s is refused, and the place is named', (_, payload, path) => {
    let thrown: unknown
    try { derivedKey('ann', 'i', payload) } catch (error) { thrown = error }
    expect(thrown).toBeInstanceOf(CanonicalError)
    expect((thrown as CanonicalError).path).toBe(path)
    expect((thrown as Error).message.split('\n')).toHaveLength(1)
  })

  test('volatile_fields_of_time_random_and_csrf_are_found', () => {
    const payload = {
      item: 'tea', qty: 2, at: new Date(0), nested: [{ timestamp: 5 }], requestId: 'x', due: '2026-11-24T10:00:00Z',
      cart: '7f1c1c9e-6e0e-4f3f-9a55-0d5fd1a3b7a1',
    }
    expect(findVolatileFields(payload)).toEqual(['at', 'nested.0.timestamp', 'requestId', 'due', 'cart'])
    expect(findVolatileFields({ item: 'tea', qty: 2, update: true, time: { of: 'day' } })).toEqual([])
  })
})

describe('keys on the wire', () => {
  const single = cases.keys.filter((it) => it.value !== undefined && it.connection === undefined)
  it('has its cases', () => expect(single.length).toBeGreaterThan(30))
  test.each(single)('$name', ({ value, key }) => {
    expect(keyOf(value!)).toBe(key)
    if (key !== undefined) expect(keyOf(JSON.stringify(key))).toBe(key) // as it is sent
  })
})

test('a new key is a UUIDv7 of now, and of nobody else', () => {
  const keys = new Set(Array.from({ length: 1000 }, () => newKey()))
  expect(keys.size).toBe(1000)
  for (const key of keys) expect(key).toMatch(/^[\da-f]{8}-[\da-f]{4}-7[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/)
  const [before, key, after] = [Date.now(), newKey(), Date.now()]
  const time = Number.parseInt(key.replace('-', '').slice(0, 12), 16)
  expect(time >= before && time <= after).toBe(true)
})

test('SHA-256 is that of Node, for each length around a block', () => {
  for (let length = 0; length < 200; length++) {
    const bytes = Uint8Array.from({ length }, (_, i) => (i * 7 + length) & 0xff)
    expect(sha256(bytes)).toBe(createHash('sha256').update(bytes).digest('hex'))
  }
  const long = 'é€😀'.repeat(100_000)
  expect(sha256(long)).toBe(createHash('sha256').update(long).digest('hex'))
})
