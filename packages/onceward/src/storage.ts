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
  const place = () => globalThis[`${kind}Storage`]
  return {
    get: (name) => place().getItem(name),
    set: (name, text) => place().setItem(name, text),
    remove: (name) => place().removeItem(name),
    names: () => Object.keys(place()),
  }
}

/** The keys of a storage, and memory behind it. */
export interface Keys {
  readonly get: (id: string) => Promise<Entry | undefined>
  readonly put: (id: string, entry: Entry) => Promise<void>
  readonly remove: (id: string) => Promise<void>
  /** Where they are: the storage, and memory. */
  readonly places: readonly KeyStorage[]
}

export function keysIn(storage: KeyStorage, warn: (message: string) => void): Keys {
  const memory = memoryStorage()
  let hasWarned = false
  const attempt = async <T>(use: (storage: KeyStorage) => Awaitable<T>): Promise<T | undefined> => {
    try {
      return await use(storage)
    } catch (error) {
      if (!hasWarned) warn(`onceward: keys are in memory alone: ${error as Error}`)
      hasWarned = true
      return undefined
    }
  }
  return {
    get: async (id) => {
      const name = PREFIX + id
      const text = (await memory.get(name)) ?? (await attempt((it) => it.get(name)))
      try {
        const entry = JSON.parse(text!) as Entry
        return Date.now() - entry.born <= AGE_MS_MAX ? entry : undefined
      } catch {
        return undefined // nothing there, or nothing of ours
      }
    },
    put: async (id, entry) => {
      const text = JSON.stringify(entry)
      const isKept = await attempt(async (it) => (await it.set(PREFIX + id, text), true))
      // What a full storage once left in memory is not to stand before what it took since.
      await (isKept ? memory.remove(PREFIX + id) : memory.set(PREFIX + id, text))
    },
    remove: async (id) => {
      await memory.remove(PREFIX + id)
      await attempt((it) => it.remove(PREFIX + id))
    },
    places: [storage, memory],
  }
}

/** The ids of a user's intent that have a key. */
export async function idsOf({ places }: Keys, group: string): Promise<string[]> {
  const names = await Promise.all(places.map(async (place) => place.names()).map((names) => names.catch(() => [])))
  return names.flat().filter((name) => name.startsWith(`${PREFIX}${group}:`)).map((name) => name.slice(PREFIX.length))
}
