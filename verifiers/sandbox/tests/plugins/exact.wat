;; A verifier as a component, written by hand: a reply is right if it is the answer, letter for
;; letter. A wrong reply of one capital letter makes it misbehave, for the tests.
(component
  (type $ty-rl:plugin/host@0.1.0
    (instance
      (type (func (param "text" string)))
      (export "log" (func (type 0)))
    )
  )
  (import "rl:plugin/host@0.1.0" (instance $rl:plugin/host@0.1.0 (type $ty-rl:plugin/host@0.1.0)))
  (type $ty-rl:plugin/types@0.1.0
    (instance
      (type (enum "system" "user" "assistant" "tool"))
      (export "role" (type (eq 0)))
      (type (record (field "role" 1) (field "content" string)))
      (export "message" (type (eq 2)))
      (type (enum "finished" "length" "turn-limit"))
      (export "stop" (type (eq 4)))
      (type (record (field "input" string) (field "output" string)))
      (export "test-case" (type (eq 6)))
      (type (list 7))
      (type (variant (case "none") (case "answer" string) (case "tests" 8) (case "custom" string)))
      (export "reference" (type (eq 9)))
    )
  )
  (import "rl:plugin/types@0.1.0" (instance $rl:plugin/types@0.1.0 (type $ty-rl:plugin/types@0.1.0)))
  (core module $main
    (import "rl:plugin/host@0.1.0" "log" (func $log (param i32 i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "this plugin takes no options")
    (data (i32.const 48) "wrong")
    (data (i32.const 56) "no answer to compare with")
    (data (i32.const 88) "\ff\fe")

    ;; Where the next allocation goes; all are given up when a call has returned.
    (global $free (mut i32) (i32.const 1024))
    (func $allocate (param $align i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at
        (i32.and
          (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
          (i32.sub (i32.const 0) (local.get $align))))
      (global.set $free (i32.add (local.get $at) (local.get $size)))
      (block $fits
        (loop $more
          (br_if $fits
            (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
          (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))
          unreachable))
      (local.get $at))
    (func (export "cabi_realloc") (param $old i32) (param i32) (param $align i32) (param $size i32) (result i32)
      ;; Nothing here is ever made larger.
      (if (local.get $old) (then unreachable))
      (call $allocate (local.get $align) (local.get $size)))

    (func $equal (param $a i32) (param $b i32) (param $length i32) (result i32)
      (loop $next
        (if (i32.eqz (local.get $length)) (then (return (i32.const 1))))
        (if (i32.ne (i32.load8_u (local.get $a)) (i32.load8_u (local.get $b)))
          (then (return (i32.const 0))))
        (local.set $a (i32.add (local.get $a) (i32.const 1)))
        (local.set $b (i32.add (local.get $b) (i32.const 1)))
        (local.set $length (i32.sub (local.get $length) (i32.const 1)))
        (br $next))
      unreachable)

    ;; open: func(options: string) -> result<_, string>
    (func (export "rl:plugin/verifier@0.1.0#open") (param $options i32) (param $length i32) (result i32)
      (local $result i32)
      (local.set $result (call $allocate (i32.const 4) (i32.const 12)))
      (if (i32.ne (local.get $length) (i32.const 2)) ;; anything but {}
        (then
          (i32.store8 (local.get $result) (i32.const 1))
          (i32.store offset=4 (local.get $result) (i32.const 16))
          (i32.store offset=8 (local.get $result) (i32.const 28))))
      (local.get $result))
    (func (export "cabi_post_rl:plugin/verifier@0.1.0#open") (param i32)
      (global.set $free (i32.const 1024)))

    (func $deeper (param i32) (result i32)
      (i32.add (i32.const 1) (call $deeper (i32.add (local.get 0) (i32.const 1)))))

    ;; What the tests need of a plugin that misbehaves: a reply of one capital letter asks for it.
    (func $misbehave (param $letter i32) (param $verdict i32)
      (if (i32.eq (local.get $letter) (i32.const 0x4c)) ;; L: loops
        (then (loop $for_ever (br $for_ever))))
      (if (i32.eq (local.get $letter) (i32.const 0x54)) ;; T: traps
        (then unreachable))
      (if (i32.eq (local.get $letter) (i32.const 0x47)) ;; G: grows
        (then (loop $for_ever (drop (call $allocate (i32.const 1) (i32.const 1048576))) (br $for_ever))))
      (if (i32.eq (local.get $letter) (i32.const 0x52)) ;; R: recursion
        (then (drop (call $deeper (i32.const 0)))))
      (if (i32.eq (local.get $letter) (i32.const 0x4e)) ;; N: a reward that is no number
        (then (f32.store offset=4 (local.get $verdict) (f32.const nan))))
      (if (i32.eq (local.get $letter) (i32.const 0x4f)) ;; O: an outcome that there is not
        (then (i32.store8 offset=8 (local.get $verdict) (i32.const 77))))
      (if (i32.eq (local.get $letter) (i32.const 0x55)) ;; U: a text that is no Unicode
        (then
          (i32.store8 offset=20 (local.get $verdict) (i32.const 1))
          (i32.store offset=24 (local.get $verdict) (i32.const 88))
          (i32.store offset=28 (local.get $verdict) (i32.const 2))))
      (if (i32.eq (local.get $letter) (i32.const 0x46)) ;; F: floods the log, then goes on
        (then
          (local.set $letter (i32.const 100000))
          (loop $again
            (call $log (i32.const 48) (i32.const 5))
            (br_if $again (local.tee $letter (i32.sub (local.get $letter) (i32.const 1))))))))

    ;; judge: func(batch: list<conversation>) -> list<result<verdict, string>>
    ;; A conversation takes 24 bytes, a result 32.
    (func (export "rl:plugin/verifier@0.1.0#judge") (param $batch i32) (param $count i32) (result i32)
      (local $result i32) (local $verdict i32) (local $left i32)
      (local $message i32) (local $reply i32) (local $length i32)
      (local.set $result (call $allocate (i32.const 4) (i32.const 8)))
      (local.set $verdict (call $allocate (i32.const 4) (i32.mul (local.get $count) (i32.const 32))))
      (i32.store (local.get $result) (local.get $verdict))
      (i32.store offset=4 (local.get $result) (local.get $count))
      (memory.fill (local.get $verdict) (i32.const 0) (i32.mul (local.get $count) (i32.const 32)))
      (local.set $left (local.get $count))
      (block $end
        (loop $next
          (br_if $end (i32.eqz (local.get $left)))
          ;; The last of the messages, of 12 bytes each.
          (local.set $length (i32.const 0))
          (if (i32.load offset=4 (local.get $batch))
            (then
              (local.set $message
                (i32.add
                  (i32.load (local.get $batch))
                  (i32.mul (i32.const 12) (i32.sub (i32.load offset=4 (local.get $batch)) (i32.const 1)))))
              (local.set $reply (i32.load offset=4 (local.get $message)))
              (local.set $length (i32.load offset=8 (local.get $message)))))
          (if (i32.ne (i32.load8_u offset=12 (local.get $batch)) (i32.const 1))
            (then ;; The reference is no answer: an error.
              (i32.store8 (local.get $verdict) (i32.const 1))
              (i32.store offset=4 (local.get $verdict) (i32.const 56))
              (i32.store offset=8 (local.get $verdict) (i32.const 25)))
            (else
              (if (if (result i32) (i32.eq (local.get $length) (i32.load offset=20 (local.get $batch)))
                    (then (call $equal (local.get $reply) (i32.load offset=16 (local.get $batch)) (local.get $length)))
                    (else (i32.const 0)))
                (then ;; correct
                  (f32.store offset=4 (local.get $verdict) (f32.const 1)))
                (else ;; incorrect, and why
                  (i32.store8 offset=8 (local.get $verdict) (i32.const 1))
                  (i32.store8 offset=20 (local.get $verdict) (i32.const 1))
                  (i32.store offset=24 (local.get $verdict) (i32.const 48))
                  (i32.store offset=28 (local.get $verdict) (i32.const 5))
                  (if (i32.eq (local.get $length) (i32.const 1))
                    (then
                      (call $misbehave (i32.load8_u (local.get $reply)) (local.get $verdict))
                      (if (i32.eq (i32.load8_u (local.get $reply)) (i32.const 0x43)) ;; C: one too few
                        (then (i32.store offset=4 (local.get $result) (i32.sub (local.get $count) (i32.const 1)))))))))))
          (local.set $batch (i32.add (local.get $batch) (i32.const 24)))
          (local.set $verdict (i32.add (local.get $verdict) (i32.const 32)))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br $next)))
      (local.get $result))
    (func (export "cabi_post_rl:plugin/verifier@0.1.0#judge") (param i32)
      (global.set $free (i32.const 1024))))

  ;; What follows is mechanical: the functions above as those of the interface.
  (core module $shim-module
    (type (func (param i32 i32)))
    (table 1 1 funcref)
    (export "0" (func 0))
    (export "$imports" (table 0))
    (func (type 0) (param i32 i32)
      local.get 0
      local.get 1
      i32.const 0
      call_indirect (type 0)
    )
  )
  (core module $fixup
    (type (func (param i32 i32)))
    (import "" "0" (func (type 0)))
    (import "" "$imports" (table 1 1 funcref))
    (elem (i32.const 0) func 0)
  )
  (core instance $shim-instance (instantiate $shim-module))
  (alias export $rl:plugin/types@0.1.0 "message" (type $message))
  (alias export $rl:plugin/types@0.1.0 "stop" (type $stop))
  (alias export $rl:plugin/types@0.1.0 "reference" (type $reference))
  (type (list $message))
  (type (record (field "messages" 5) (field "stop" $stop) (field "reference" $reference)))
  (type (enum "correct" "incorrect" "malformed" "graded"))
  (type (tuple string f32))
  (type (list 8))
  (type (option string))
  (type (record (field "reward" f32) (field "outcome" 7) (field "parts" 9) (field "reason" 10)))
  (alias core export $shim-instance "0" (core func $indirect-rl:plugin/host@0.1.0-log))
  (core instance $rl:plugin/host@0.1.0
    (export "log" (func $indirect-rl:plugin/host@0.1.0-log))
  )
  (core instance $main (instantiate $main
      (with "rl:plugin/host@0.1.0" (instance $rl:plugin/host@0.1.0))
    )
  )
  (alias core export $main "memory" (core memory $memory))
  (alias core export $shim-instance "$imports" (core table $"shim table"))
  (alias export $rl:plugin/host@0.1.0 "log" (func $log))
  (alias core export $main "cabi_realloc" (core func $realloc))
  (core func $"#core-func2 indirect-rl:plugin/host@0.1.0-log" (canon lower (func $log) (memory $memory) string-encoding=utf8))
  (core instance $fixup-args
    (export "$imports" (table $"shim table"))
    (export "0" (func $"#core-func2 indirect-rl:plugin/host@0.1.0-log"))
  )
  (core instance $fixup (instantiate $fixup
      (with "" (instance $fixup-args))
    )
  )
  (type (result (error string)))
  (type (func (param "options" string) (result 12)))
  (alias core export $main "rl:plugin/verifier@0.1.0#open" (core func $rl:plugin/verifier@0.1.0#open))
  (alias core export $main "cabi_post_rl:plugin/verifier@0.1.0#open" (core func $cabi_post_rl:plugin/verifier@0.1.0#open))
  (func $open (type 13) (canon lift (core func $rl:plugin/verifier@0.1.0#open) (memory $memory) (realloc $realloc) string-encoding=utf8 (post-return $cabi_post_rl:plugin/verifier@0.1.0#open)))
  (type (list 6))
  (type (result 11 (error string)))
  (type (list 15))
  (type (func (param "batch" 14) (result 16)))
  (alias core export $main "rl:plugin/verifier@0.1.0#judge" (core func $rl:plugin/verifier@0.1.0#judge))
  (alias core export $main "cabi_post_rl:plugin/verifier@0.1.0#judge" (core func $cabi_post_rl:plugin/verifier@0.1.0#judge))
  (func $judge (type 17) (canon lift (core func $rl:plugin/verifier@0.1.0#judge) (memory $memory) (realloc $realloc) string-encoding=utf8 (post-return $cabi_post_rl:plugin/verifier@0.1.0#judge)))
  (alias export $rl:plugin/types@0.1.0 "role" (type $role))
  (alias export $rl:plugin/types@0.1.0 "message" (type $"#type19 message"))
  (alias export $rl:plugin/types@0.1.0 "stop" (type $"#type20 stop"))
  (alias export $rl:plugin/types@0.1.0 "test-case" (type $test-case))
  (alias export $rl:plugin/types@0.1.0 "reference" (type $"#type22 reference"))
  (component $rl:plugin/verifier@0.1.0-shim-component
    (type (enum "system" "user" "assistant" "tool"))
    (import "import-type-role" (type (eq 0)))
    (type (record (field "role" 1) (field "content" string)))
    (import "import-type-message" (type (eq 2)))
    (type (enum "finished" "length" "turn-limit"))
    (import "import-type-stop" (type (eq 4)))
    (type (record (field "input" string) (field "output" string)))
    (import "import-type-test-case" (type (eq 6)))
    (type (list 7))
    (type (variant (case "none") (case "answer" string) (case "tests" 8) (case "custom" string)))
    (import "import-type-reference" (type (eq 9)))
    (type (result (error string)))
    (type (func (param "options" string) (result 11)))
    (import "import-func-open" (func (type 12)))
    (import "import-type-message0" (type (eq 3)))
    (type (list 13))
    (import "import-type-stop0" (type (eq 5)))
    (import "import-type-reference0" (type (eq 10)))
    (type (record (field "messages" 14) (field "stop" 15) (field "reference" 16)))
    (import "import-type-conversation" (type (eq 17)))
    (type (list 18))
    (type (enum "correct" "incorrect" "malformed" "graded"))
    (import "import-type-outcome" (type (eq 20)))
    (type (tuple string f32))
    (type (list 22))
    (type (option string))
    (type (record (field "reward" f32) (field "outcome" 21) (field "parts" 23) (field "reason" 24)))
    (import "import-type-verdict" (type (eq 25)))
    (type (result 26 (error string)))
    (type (list 27))
    (type (func (param "batch" 19) (result 28)))
    (import "import-func-judge" (func (type 29)))
    (export "message" (type 3))
    (export "stop" (type 5))
    (export "reference" (type 10))
    (type (list 30))
    (type (record (field "messages" 33) (field "stop" 31) (field "reference" 32)))
    (export "conversation" (type 34))
    (type (enum "correct" "incorrect" "malformed" "graded"))
    (export "outcome" (type 36))
    (type (tuple string f32))
    (type (list 38))
    (type (option string))
    (type (record (field "reward" f32) (field "outcome" 37) (field "parts" 39) (field "reason" 40)))
    (export "verdict" (type 41))
    (type (result (error string)))
    (type (func (param "options" string) (result 43)))
    (export "open" (func 0) (func (type 44)))
    (type (list 35))
    (type (result 42 (error string)))
    (type (list 46))
    (type (func (param "batch" 45) (result 47)))
    (export "judge" (func 1) (func (type 48)))
  )
  (instance $rl:plugin/verifier@0.1.0-shim-instance (instantiate $rl:plugin/verifier@0.1.0-shim-component
      (with "import-func-open" (func $open))
      (with "import-func-judge" (func $judge))
      (with "import-type-role" (type $role))
      (with "import-type-message" (type $"#type19 message"))
      (with "import-type-stop" (type $"#type20 stop"))
      (with "import-type-test-case" (type $test-case))
      (with "import-type-reference" (type $"#type22 reference"))
      (with "import-type-message0" (type $message))
      (with "import-type-stop0" (type $stop))
      (with "import-type-reference0" (type $reference))
      (with "import-type-conversation" (type 6))
      (with "import-type-outcome" (type 7))
      (with "import-type-verdict" (type 11))
    )
  )
  (export $rl:plugin/verifier@0.1.0 "rl:plugin/verifier@0.1.0" (instance $rl:plugin/verifier@0.1.0-shim-instance))
)
