/** Keeps keys: the key, intent, digest, age and origin of what was sent, never the payload. */

type Awaitable<T> = T | PromiseLike<T>

/** Stores small texts by name. Any method may fail: then memory is used, and a warning is issued. */
export interface KeyStorage {
  get(name: string): Awaitable<string | null | undefined>
  set(name: string, text: string): Awaitable<void>
  remove(name: string): Awaitable<void>
  names(): Awaitable<readonly string[]>
}

export interface Entry {
  readonly key: string
  readonly intent: string
  /** Digest of the content that was sent first. */
  readonly digest: string
  /** Time of the first send, in milliseconds since 1970. */
  readonly firstSentAt: number
  /** True if it was sent, and may have been executed. */
  readonly maybeExecuted: boolean
  /** Time of its end, for a named intent. */
  readonly end?: number | undefined
  /** Origin that it was sent to, unless that is the page's own. */
  readonly origin?: string | undefined
  /** True if the name is free again once its end was delivered. */
  readonly repeatable?: boolean | undefined
}

/** Longer than any server remembers a key by default. */
const AGE_MS_MAX = 30 * 24 * 60 * 60 * 1000
/** How long a named intent stays known after its end. */
const ENDED_MS_MAX = 24 * 60 * 60 * 1000
const PREFIX = 'onceward:'

export function memoryStorage(): KeyStorage {
  const texts = new Map<string, string>()
  return {
    get: (name) => texts.get(name),
    set: (name, text) => void texts.set(name, text),
    remove: (name) => void texts.delete(name),
    names: () => [...texts.keys()],
  }
}

/** `sessionStorage` or `localStorage`. It is accessed at each use: merely naming it throws where it is blocked. */
export function webStorage(kind: 'session' | 'local'): KeyStorage {
  const place = () => globalThis[`${kind}Storage`]
  return {
    get: (name) => place().getItem(name),
    set: (name, text) => place().setItem(name, text),
    remove: (name) => place().removeItem(name),
    names: () => Object.keys(place()),
  }
}

/** Name of an entry in the storage. */
export const nameOf = (id: string) => PREFIX + id
/** Id of the entry of a named intent; an unnamed one has its digest after the colon. */
export const namedId = (group: string) => `${group}:`
const isNamed = (id: string) => id.endsWith(':')

/** Parses a stored text. The names in it live on in the storage of browsers. */
export function entryOf(text: string | null | undefined): Entry | undefined {
  try {
    const { born: firstSentAt, doubt: maybeExecuted, ...rest } = JSON.parse(text!)
    const entry = { firstSentAt, maybeExecuted, ...rest } as Entry
    const now = Date.now()
    return now - firstSentAt <= AGE_MS_MAX && !(now - entry.end! > ENDED_MS_MAX) ? entry : undefined
  } catch {
    return undefined // nothing there, or nothing of ours
  }
}

/** The keys in their storages, with memory as the fallback. */
export class Keys {
  readonly #storage: KeyStorage
  /** Storage of named intents, shared by all tabs. */
  readonly #names: KeyStorage
  readonly #memory = memoryStorage()
  readonly #warn: (message: string) => void
  #hasWarned = false

  constructor(kind: 'memory' | 'session' | 'local' | KeyStorage, warn: (message: string) => void) {
    this.#storage = typeof kind === 'object' ? kind : kind === 'memory' ? this.#memory : webStorage(kind)
    this.#names = kind === 'session' ? webStorage('local') : this.#storage
    this.#warn = warn
  }

  async #try<T>(use: () => Awaitable<T>): Promise<T | undefined> {
    try {
      return await use()
    } catch (error) {
      if (!this.#hasWarned) this.#warn(`onceward: keys are in memory only: ${error as Error}`)
      this.#hasWarned = true
      return undefined
    }
  }
  #placeOf(id: string): KeyStorage {
    return isNamed(id) ? this.#names : this.#storage
  }

  async get(id: string): Promise<Entry | undefined> {
    const name = nameOf(id)
    return entryOf((await this.#memory.get(name)) ?? (await this.#try(() => this.#placeOf(id).get(name))))
  }
  async put(id: string, { firstSentAt, maybeExecuted, ...entry }: Entry): Promise<void> {
    const name = nameOf(id)
    const text = JSON.stringify({ ...entry, born: firstSentAt, doubt: maybeExecuted })
    const isKept = await this.#try(async () => (await this.#placeOf(id).set(name, text), true))
    // A copy that was left in memory while the storage was full must not hide what was stored since.
    if (!isKept) await this.#memory.set(name, text)
    else if (this.#placeOf(id) !== this.#memory) await this.#memory.remove(name)
  }
  async remove(id: string): Promise<void> {
    await this.#memory.remove(nameOf(id))
    await this.#try(() => this.#placeOf(id).remove(nameOf(id)))
  }
  /** Ends an intent: a name stays known, unless it is repeatable, and ends of more than a day ago are removed. */
  async finish(id: string, entry: Entry): Promise<void> {
    if (!isNamed(id) || entry.repeatable) return this.remove(id)
    await this.put(id, { ...entry, maybeExecuted: true, end: entry.end ?? Date.now() })
    await this.#try(async () => {
      for (const name of await this.#names.names()) {
        const text = name.startsWith(PREFIX) && name.endsWith(':') && (await this.#names.get(name))
        if (text && !entryOf(text)) await this.#names.remove(name)
      }
    })
  }
  /** Returns the entries of an intent by id: that of its name, or one for each content. */
  async of(group: string): Promise<Map<string, Entry>> {
    const places = [this.#memory, this.#storage, this.#names]
    const names = await Promise.all(places.map(async (place) => place.names()).map((it) => it.catch(() => [])))
    const found = new Map<string, Entry>()
    for (const name of new Set(names.flat())) {
      const id = name.slice(PREFIX.length)
      const entry = name.startsWith(`${PREFIX}${group}:`) && (await this.get(id))
      if (entry) found.set(id, entry)
    }
    return found
  }
  /** Returns the youngest entry of an intent that may have been executed, and its id. */
  async youngest(group: string): Promise<[string, Entry] | undefined> {
    return [...(await this.of(group))].filter(([, it]) => it.maybeExecuted).sort(([, a], [, b]) => b.firstSentAt - a.firstSentAt)[0]
  }
}
