/** Where keys are kept while their outcome is open: the key, intent, digest and age alone, never the payload. */

type Awaitable<T> = T | PromiseLike<T>

/** A place for small texts by name. Any method may fail: then memory is used, and a warning says so. */
export interface KeyStorage {
  get(name: string): Awaitable<string | null | undefined>
  set(name: string, text: string): Awaitable<void>
  remove(name: string): Awaitable<void>
  names(): Awaitable<readonly string[]>
}

export interface Entry {
  readonly key: string
  readonly intent: string
  /** What the key was made for: another payload has another. */
  readonly digest: string
  /** When the intent was born, in milliseconds since 1970. */
  readonly born: number
  /** Whether it was sent, and may have been executed. */
  readonly doubt: boolean
}

/** Longer than any server remembers a key unless it is told to. */
const AGE_MS_MAX = 30 * 24 * 60 * 60 * 1000
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

/** `sessionStorage` or `localStorage`. It is reached at each use: merely naming it throws where it is blocked. */
export function webStorage(kind: 'session' | 'local'): KeyStorage {
  const place = () => (kind === 'session' ? globalThis.sessionStorage : globalThis.localStorage)
  return {
    get: (name) => place().getItem(name),
    set: (name, text) => place().setItem(name, text),
    remove: (name) => place().removeItem(name),
    names: () => Object.keys(place()),
  }
}

/** The keys of a storage, and memory behind it. */
export class Keys {
  readonly #storage: KeyStorage
  readonly #memory = memoryStorage()
  readonly #warn: (message: string) => void
  #hasWarned = false

  constructor(storage: KeyStorage, warn: (message: string) => void) {
    this.#storage = storage
    this.#warn = warn
  }

  async get(id: string): Promise<Entry | undefined> {
    const name = PREFIX + id
    const text = (await this.#memory.get(name)) ?? (await this.#try((it) => it.get(name)))
    try {
      const entry = JSON.parse(text!) as Entry
      if (Date.now() - entry.born <= AGE_MS_MAX) return entry
    } catch { /* nothing there, or nothing of ours */ }
    return undefined
  }

  async put(id: string, entry: Entry): Promise<void> {
    const text = JSON.stringify(entry)
    if (!(await this.#try(async (it) => (await it.set(PREFIX + id, text), true)))) await this.#memory.set(PREFIX + id, text)
  }

  async remove(id: string): Promise<void> {
    await this.#memory.remove(PREFIX + id)
    await this.#try((it) => it.remove(PREFIX + id))
  }

  /** The open entries of one user's intent, the youngest first. */
  async of(group: string): Promise<(Entry & { id: string })[]> {
    const names = [...(await this.#memory.names()), ...((await this.#try((it) => it.names())) ?? [])]
    const ids = names.filter((name) => name.startsWith(`${PREFIX}${group}:`)).map((name) => name.slice(PREFIX.length))
    const entries = await Promise.all(ids.map(async (id) => ({ ...(await this.get(id))!, id })))
    return entries.filter(({ born }) => born).sort((a, b) => b.born - a.born)
  }

  async #try<T>(use: (storage: KeyStorage) => Awaitable<T>): Promise<T | undefined> {
    try {
      return await use(this.#storage)
    } catch (error) {
      if (!this.#hasWarned) this.#warn(`keys are kept in memory alone, and do not survive a refresh: the storage failed (${String(error)})`)
      this.#hasWarned = true
      return undefined
    }
  }
}
