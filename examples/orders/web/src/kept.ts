import { useSyncExternalStore } from 'react'

/** A value that outlives a refresh, and that components look at. */
export interface Kept<T> {
  get(): T
  set(value: T): void
  use(): T
}

/** In `localStorage` it is one value for all tabs; in `sessionStorage` each tab has its own, and a duplicate gets a copy. */
export function kept<T>(place: 'localStorage' | 'sessionStorage', name: string, first: () => T): Kept<T> {
  const listeners = new Set<() => void>()
  const tell = () => listeners.forEach((listener) => listener())
  const put = (it: T) => {
    // A page whose storage is blocked still works, for as long as it is open.
    try { window[place].setItem(name, JSON.stringify(it)) } catch { /* as said */ }
  }
  let value: T
  try {
    value = JSON.parse(window[place].getItem(name) ?? 'null') ?? first()
  } catch {
    value = first()
  }
  put(value)
  addEventListener('storage', ({ key, newValue, storageArea }) => {
    if (key !== name || newValue === null || storageArea !== window[place]) return
    value = JSON.parse(newValue)
    tell()
  })
  const get = () => value
  const subscribe = (listener: () => void) => {
    listeners.add(listener)
    return () => void listeners.delete(listener)
  }
  return {
    get,
    set: (next) => {
      put((value = next))
      tell()
    },
    use: () => useSyncExternalStore(subscribe, get),
  }
}
